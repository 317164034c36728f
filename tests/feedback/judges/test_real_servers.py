"""The server backend against servers that we did not write: `transformers serve`, and llama-cpp-python's where it is installed.

For the latter, PREFOPT_LLAMA_PYTHON is an interpreter with llama-cpp-python[server], and PREFOPT_LLAMA_GGUF a model.
"""

import importlib.util
import math
import os
import re
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
from _tiny import tiny_model
from transformers import AutoConfig, GenerationConfig

from prefopt import PrefoptError
from prefopt.feedback.judges import Question
from prefopt.feedback.judges.memory import Memory
from prefopt.feedback.judges.server import Server

pytestmark = pytest.mark.slow


def is_open(port):
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@contextmanager
def serving(command, port, log):
    """The server, ready, in a process group of its own."""
    with log.open("a") as out:
        process = subprocess.Popen(
            [*command, "--host", "127.0.0.1", "--port", str(port)], stdout=out, stderr=out, start_new_session=True
        )
    try:
        deadline = time.monotonic() + 180
        while not is_open(port):
            assert process.poll() is None and time.monotonic() < deadline, log.read_text()[-2000:]
            time.sleep(0.1)
        yield process
    finally:
        kill(process)
        process.wait()


def kill(process):
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)


def kill_after(count, answers, process):
    for n, _ in enumerate(answers, 1):
        if n == count:
            kill(process)


@pytest.fixture
def port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def answered(log):
    """Requests that the server says it answered."""
    return len(re.findall(r'POST /v1/(?:chat/)?completions HTTP/1.1" 200', log.read_text()))


@pytest.mark.skipif(
    not all(map(importlib.util.find_spec, ("fastapi", "uvicorn"))),
    reason="`transformers serve` needs fastapi and uvicorn",
)
def test_transformers_serve_killed_midway(tmp_path, port, caplog):
    # Every word ends an answer: answers that are cut off at their limit are not remembered.
    model, log = str(tiny_model(tmp_path / "model", chat=True)), tmp_path / "log"
    words = AutoConfig.from_pretrained(model).vocab_size
    GenerationConfig(eos_token_id=list(range(words)), pad_token_id=0).save_pretrained(model)
    command = [str(Path(sys.executable).with_name("transformers")), "serve", model, "--device", "cpu"]
    questions = [Question((("user", f"w{n} w{n + 1}"),), max_tokens=4) for n in range(20)]
    server = Server(model, f"http://127.0.0.1:{port}/v1", key_env=None, retries=2, concurrency=2)
    first = Memory(server, tmp_path)
    with serving(command, port, log) as process, pytest.raises(PrefoptError, match=r"is not there, after 2 retries"):
        kill_after(7, first.ask(questions), process)
    assert 7 <= first.spent.calls < 20 and server.seen["retries"] >= 2 and "retry 1 of 2 after no answer" in caplog.text
    with serving(command, port, log):
        again = Memory(server, tmp_path)
        said = again.answers(questions)
        assert all(re.fullmatch(r"(\S+ ?){0,4}", one.text) for one in said) and {
            one.completion_tokens for one in said
        } <= {1, 2, 3, 4}
        assert again.spent.hits == first.spent.calls and again.spent.calls == 20 - first.spent.calls
        # One request for each question, and at most the two that were on their way when it was killed.
        assert 20 <= answered(log) <= 22
        with pytest.raises(PrefoptError, match="gives no log-probs"):
            list(server.ask([Question((("user", "w1"),), labels=("w1", "w2"))]))


@pytest.mark.skipif(
    "PREFOPT_LLAMA_GGUF" not in os.environ, reason="PREFOPT_LLAMA_PYTHON and PREFOPT_LLAMA_GGUF are not set"
)
def test_llama_cpp_lists_tokens(tmp_path, port):
    log, gguf = tmp_path / "log", os.environ["PREFOPT_LLAMA_GGUF"]
    command = [os.environ["PREFOPT_LLAMA_PYTHON"], "-m", "llama_cpp.server", "--model", gguf, "--logits_all", "true"]
    url = f"http://127.0.0.1:{port}/v1"
    server = Server("any", url, key_env=None, endpoint="completions", top=40, concurrency=2)
    labels = (" 1", " 2", " 3", " 4", " 5", " 10")
    asked = Question((("user", "Rate this answer from 1 to 10. The answer: Paris."),), start="Score:", labels=labels)
    with serving([*command, "--n_ctx", "512", "--n_threads", "1", "--n_batch", "1"], port, log):
        memory = Memory(server, tmp_path)
        (said,) = memory.answers([asked])
        assert memory.answers([asked]) == [said]
    chances = [math.exp(logp) for logp in said.logps]
    assert all(0 <= p < 1 for p in chances) and 0 < sum(chances[:5]) <= 1
    assert answered(log) == memory.spent.calls
