"""A judge's backend against servers that we did not write: answers, log-probs, a kill in the middle, and what was paid.

python experiments/judge_servers/run.py transformers MODEL
python experiments/judge_servers/run.py llama-cpp MODEL --python VENV/bin/python --gguf FILE
python experiments/judge_servers/run.py vllm MODEL          # after `make vllm`; completions by the chat template
python experiments/judge_servers/run.py vllm-chat MODEL     # chats that are given the beginning of an answer
"""

import argparse
import logging
import math
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path

from prefopt import PrefoptError
from prefopt.feedback.judges import Question
from prefopt.feedback.judges.memory import Memory
from prefopt.feedback.judges.server import Server

VLLM = Path(__file__).parents[1] / "vllm" / "serve.sh"
ANSWERS = ["Paris.", "London.", "I do not know.", "Four.", "42", "It is blue.", "Never mind.", "A whale is a mammal."]
LABELS = tuple(f" {n}" for n in range(1, 11))


def command(options: argparse.Namespace, port: int) -> list[str]:
    where = ["--host", "127.0.0.1", "--port", str(port)]
    if options.kind == "transformers":
        return [str(Path(sys.executable).with_name("transformers")), "serve", options.model, "--device", "cpu", *where]
    if options.kind.startswith("vllm"):
        limits = ["--max-model-len", "1024", "--max-num-seqs", "8", "--dtype", "float32", "--max-logprobs", "50"]
        return ["bash", str(VLLM), options.model, str(port), "--served-model-name", "smollm2", *limits]
    shown = [
        "--model",
        options.gguf,
        "--model_alias",
        "smollm2",
        "--logits_all",
        "true",
        "--n_ctx",
        "1024",
        "--n_threads",
        "1",
    ]
    return [options.python, "-m", "llama_cpp.server", *shown, *where]


@contextmanager
def serving(options: argparse.Namespace, port: int, log: Path):
    """The server in a process group of its own, ready; killed at the end."""
    with log.open("a") as out:
        process = subprocess.Popen(command(options, port), stdout=out, stderr=out, start_new_session=True)
        try:
            for _ in range(3600):
                with socket.socket() as probe:
                    if probe.connect_ex(("127.0.0.1", port)) == 0:
                        break
                if process.poll() is not None:
                    sys.exit(f"the server ended: {log.read_text()[-2000:]}")
                time.sleep(0.1)
            yield process
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def answered(log: Path) -> int:
    """Requests that the server says it answered."""
    return len(re.findall(r'POST /v1/(?:chat/)?completions HTTP/1.1" 200', log.read_text()))


def questions(options: argparse.Namespace) -> list[Question]:
    asked = "How good is this answer, from 1 to 10?\n\nThe request: Name a city.\nThe answer: {}"
    turns = [(("user", asked.format(f"{text} ({n})")),) for n in range(3) for text in ANSWERS]
    if options.kind == "transformers":
        return [Question(one, max_tokens=8) for one in turns]
    return [Question(one, start="Score:", labels=LABELS) for one in turns]


def killed_midway(options: argparse.Namespace, server: Server, folder: Path, port: int) -> None:
    log, asked = folder / "server.log", questions(options)
    kept = 0
    try:
        with serving(options, port, log) as process:
            memory, start = Memory(server, folder), time.monotonic()
            for _ in memory.ask(asked):
                kept += 1
                if kept == len(asked) // 3:
                    print(
                        f"{kept} answers in {time.monotonic() - start:.1f} s: {memory.spent}; killing the server (SIGKILL)"
                    )
                    os.killpg(process.pid, signal.SIGKILL)
    except PrefoptError as error:
        print(f"stopped: {error}")
    print(f"kept {kept} of {len(asked)}; the client saw {server.seen['retries']} retries")
    with serving(options, port, log):
        again = Memory(server, folder)
        said = again.answers(asked)
        print(f"started again: {again.spent}")
        print(
            f"requests that the server answered in both lives: {answered(log)}; paid for: {memory.spent.calls + again.spent.calls}"
        )
        third = Memory(server, folder)
        same = [a == b for a, b in zip(third.answers(asked), said, strict=True) if b.logps or b.text is not None]
        assert all(same)
        print(f"answers with no first token to list: {len(said) - len(same)}")
        print(f"asked a third time: {third.spent}")
        if options.kind == "transformers":
            print("texts:", [one.text for one in said[:3]])
            try:
                list(server.ask([Question(asked[0].turns, labels=("1", "2"))]))
            except PrefoptError as error:
                print(f"log-probs: refused: {error}")
        else:
            compare(options, *zip(*[pair for pair in zip(asked, said, strict=True) if pair[1].logps][:8], strict=True))


def compare(options: argparse.Namespace, asked, said) -> None:
    """With the same weights in float32, not quantised, in transformers: log-likelihoods of whole labels."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(options.model)
    model = AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.float32).eval()
    gaps, mass = [], []
    for question, answer in zip(asked, said, strict=True):
        turns = [{"role": role, "content": content} for role, content in question.turns]
        text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True) + question.start
        before = tokenizer(text)["input_ids"]
        for label, logp in zip(question.labels, answer.logps, strict=True):
            ids = tokenizer(text + label)["input_ids"]
            with torch.no_grad():
                logps = model(torch.tensor([ids])).logits[0].log_softmax(-1)
            own = sum(float(logps[t - 1, ids[t]]) for t in range(len(before), len(ids)))
            if math.isfinite(logp):
                gaps.append(abs(own - logp))
        mass.append(sum(math.exp(logp) for logp in answer.logps[:9]))
    first = ", ".join(
        f"{label.strip()}: {math.exp(p):.3f}" for label, p in zip(asked[0].labels, said[0].logps, strict=True)
    )
    print(f"likelihoods of the first: {first}; requests for it: {said[0].calls}")
    print(
        f"|logp − logp of transformers, float32|: mean {sum(gaps) / len(gaps):.3f}, largest {max(gaps):.3f}, of {len(gaps)} labels"
    )
    print(
        f"mass on the labels: {min(mass):.3f} to {max(mass):.3f}; labels that no list had: {len(said) * len(LABELS) - len(gaps)}"
    )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("kind", choices=["transformers", "llama-cpp", "vllm", "vllm-chat"])
    parser.add_argument("model", help="folder of SmolLM2-135M-Instruct")
    parser.add_argument("--python", help="of the environment with llama-cpp-python[server]")
    parser.add_argument("--gguf")
    options = parser.parse_args()
    options.model = str(Path(options.model).expanduser())
    logging.basicConfig(level=logging.WARNING, format="%(name)s: %(message)s")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}/v1"
    if options.kind == "transformers":
        server = Server(options.model, url, key_env=None, concurrency=2, retries=3)
    else:
        fields = {"endpoint": "completions", "template": options.model, "top": 40}
        if options.kind == "vllm-chat":
            fields = {"starts": "continue", "top": 40}
        server = Server("smollm2", url, key_env=None, concurrency=2, retries=3, **fields)
    with tempfile.TemporaryDirectory() as folder:
        killed_midway(options, server, Path(folder), port)


if __name__ == "__main__":
    main()
