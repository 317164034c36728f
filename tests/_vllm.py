"""A real vLLM server for the slow tests, where `make vllm` has made its environment; started once for all of them."""

import os
import signal
import socket
import subprocess
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
import requests
import torch
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM

ROOT = Path(__file__).parents[1]
ENVIRONMENT = ROOT / ".vllm"
WORDS = 30


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextmanager
def serving(model, log, port=None, further=()):
    """The address of a server of this model, in a process group of its own."""
    port = port or free_port()
    script = ROOT / "experiments" / "vllm" / "serve.sh"
    own = {"CORE": str(max(os.sched_getaffinity(0))), "VLLM": str(ENVIRONMENT)}
    limits = ("--max-model-len", "256", "--max-num-seqs", "16", "--dtype", "float32")
    command = ["bash", str(script), str(model), str(port), *limits, *further]
    with log.open("a") as out:
        process = subprocess.Popen(command, stdout=out, stderr=out, start_new_session=True, env=os.environ | own)
    try:
        deadline = time.monotonic() + 180
        while True:
            assert process.poll() is None and time.monotonic() < deadline, log.read_text()[-3000:]
            try:
                if requests.get(f"http://127.0.0.1:{port}/health", timeout=5).ok:
                    break
            except requests.RequestException:
                time.sleep(0.3)
        yield f"http://127.0.0.1:{port}", process
    finally:
        stop(process)


def stop(process):
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGINT)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
    process.wait()


@pytest.fixture(scope="session")
def served_folder(tmp_path_factory, tokenizer):
    """A random Llama whose heads are as wide as vLLM wants them, and whose head is its embedding."""
    folder = tmp_path_factory.mktemp("served") / "lm"
    config = LlamaConfig(
        vocab_size=WORDS,
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=256,
        initializer_range=0.2,
        bos_token_id=None,
        eos_token_id=0,
        tie_word_embeddings=True,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = LlamaForCausalLM(config)
    model.save_pretrained(folder)
    # For the server, which is to give it a head of its own and would otherwise start with a random one.
    save_file({"lm_head.weight": model.lm_head.weight.detach().clone()}, folder / "model-head.safetensors")
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def vllm_server(served_folder, tmp_path_factory):
    """The address of a server of `served_folder`."""
    if not (ENVIRONMENT / "installed").is_file():
        pytest.skip("needs a vLLM server's environment: make vllm")
    head = ("--hf-overrides", '{"tie_word_embeddings": false}')
    with serving(served_folder, tmp_path_factory.mktemp("vllm") / "log", further=head) as (address, _):
        yield address
