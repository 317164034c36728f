"""The vLLM sampler against a stand-in for the server: what it sends and what it makes of answers, failures among them.

tests/policy/test_vllm_server.py has a real one.
"""

import json

import pytest
import torch
from _server import Loopback
from accelerate import Accelerator

from prefopt import PrefoptError
from prefopt.policy import Reference, check_sampler
from prefopt.policy.decode import vllm, vllm_weights
from prefopt.policy.decode.vllm_server import VLLMServer
from prefopt.recipe import Recipe, Rollouts, Sampling


class StandIn:
    """A server that answers every prompt with its seed's parity."""

    address, base, positions = "http://localhost:1", "m", None

    def __init__(self, address=""):
        self.asked, self.updated = [], []

    def settings(self):
        return {"model_config": {"hf_overrides": {}}}

    def reload(self, folder):
        self.updated.append(sorted(file.name for file in folder.iterdir()))

    def complete(self, body):
        self.asked.append(body)
        length = 1 + body["seed"] % 2
        logps = {"token_logprobs": [-0.5] * length}
        return [{"index": k, "token_ids": [len(body["prompt"])] * length, "logprobs": logps} for k in range(body["n"])]

    def asked_to(self, what):
        return VLLMServer.asked_to(self, what)


@pytest.fixture
def compared(monkeypatch):
    """What was compared with the server's model, which takes no request here."""
    models = []
    monkeypatch.setattr(vllm.VLLMSampler, "_compare", lambda sampler, model, name: models.append((model, name)))
    return models


@pytest.fixture
def stand_in(monkeypatch, compared):
    monkeypatch.setattr(vllm, "VLLMServer", StandIn)
    return vllm.VLLMSampler("http://localhost:1", Accelerator(cpu=True))


def test_a_request_for_each_prompt_after_the_weights(llama, stand_in, compared):
    server = stand_in.server
    settings = Sampling(temperature=0.5, max_tokens=4)
    stand_in.sync(llama, 7)
    stand_in.sync(llama, 7)  # the same update: nothing is sent again
    sampled = stand_in(llama, [(5,), (6, 7, 8)], 2, settings, torch.tensor([2, 3]))
    assert len(server.updated) == 1 and compared == [(llama, "m")]
    assert sampled.completion_ids.tolist() == [[[1, 0]] * 2, [[3, 3]] * 2]
    assert sampled.mask.tolist() == [[[True, False]] * 2, [[True, True]] * 2]
    assert sampled.logps.tolist() == [[[-0.5, 0]] * 2, [[-0.5, -0.5]] * 2]
    asked = min(server.asked, key=lambda body: body["seed"])
    assert asked["prompt"] == [5] and asked["temperature"] == 0.5 and asked["max_tokens"] == 4 and asked["n"] == 2
    assert asked["stop_token_ids"] == [0] and asked["ignore_eos"] and asked["repetition_penalty"] == 1

    stand_in.sync(llama, 8)
    stand_in.sync(llama, None)
    assert len(server.updated) == 3


def test_log_probs_of_a_truncated_distribution_are_none(llama, stand_in):
    stand_in.sync(llama, 0)
    for cut in ({"top_p": 0.9}, {"top_k": 3}):
        assert stand_in(llama, [(5,)], 2, Sampling(**cut), torch.tensor([2])).logps is None


def test_greedy_completions_are_asked_for_once(llama, stand_in):
    stand_in.sync(llama, 0)
    sampled = stand_in(llama, [(5,)], 3, Sampling(temperature=0), torch.tensor([2]))
    assert stand_in.server.asked[-1]["n"] == 1 and sampled.completion_ids.tolist() == [[[1]] * 3]


def test_what_the_server_has_no_weights_of_is_refused(llama, stand_in):
    stand_in.sync(Reference(llama), None)
    with pytest.raises(PrefoptError, match="samples the policy alone"):
        stand_in(llama, [(5,)], 1, Sampling(), torch.tensor([2]))


def test_a_tied_head_needs_a_server_that_takes_it_apart(llama, stand_in, monkeypatch):
    monkeypatch.setattr(llama.causal.config, "tie_word_embeddings", True)
    with pytest.raises(PrefoptError, match=r"would keep its former head.*--hf-overrides"):
        stand_in.sync(llama, 0)
    monkeypatch.setattr(
        StandIn, "settings", lambda _: {"model_config": {"hf_overrides": {"tie_word_embeddings": False}}}
    )
    stand_in.sync(llama, 0)
    assert {"model.safetensors", "model-head.safetensors"} <= {*stand_in.server.updated[0]}


def test_weights_between_gpus_need_a_gpu(llama, stand_in, monkeypatch):
    monkeypatch.setattr(StandIn, "settings", lambda _: {"weight_transfer_config": {"backend": "nccl"}})
    monkeypatch.setattr(vllm_weights.torch.cuda, "is_available", lambda: False)
    with pytest.raises(PrefoptError, match=r"takes weights from GPUs alone .*, and this run is on cpu"):
        stand_in.sync(llama, 0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"policy": {"model": "m", "adapter": {"dora": True}}}, "rollouts.sampler is vllm: .* without dora"),
        ({"policy": {"model": "m", "adapter": {"method": "IA3"}}}, "takes LoRA adapters alone"),
        ({"source": {"writers": ["mixture"]}}, "source.writers has mixture"),
        ({"source": {"writers": ["reference"]}}, "source.writers has reference: train an adapter"),
        (
            {
                "source": {"writers": ["reference"]},
                "policy": {"model": "m", "adapter": {}},
                "reference": {"every": 2},
            },
            "completions of another reference",
        ),
        (
            {
                "policy": {"model": "m", "adapter": {}},
                "reference": {"model": "n"},
                "evaluate": {"sampler": "vllm", "server": "http://localhost:1", "judge": "Length"},
            },
            "completions of another reference",
        ),
        ({"source": {"writers": ["reference"]}, "policy": {"model": "m", "adapter": {}}}, None),
        ({}, None),
    ],
)
def test_a_recipe_it_cannot_serve_is_refused_before_anything_is_loaded(change, message):
    spec = {"sampler": "vllm", "server": "http://localhost:1"}
    tree = {"policy": {"model": "m"}, "objective": "NashMD", "train": {"steps": 1}} | change
    tree["source"] = {"data": "d", "rollouts": spec} | tree.get("source", {})
    settings = Recipe.model_validate(tree)
    if message is None:
        check_sampler(settings.source.rollouts, settings=settings)
    else:
        with pytest.raises(PrefoptError, match=message):
            check_sampler(settings.source.rollouts, settings=settings)


@pytest.fixture
def server():
    """Answers GET with a list of one model, and POST with what `faults` holds."""
    loopback = Loopback()
    loopback.listing = {"data": [{"id": "m"}]}
    with loopback.running():
        yield loopback


def address(server):
    return server.url.removesuffix("/v1")


@pytest.fixture
def sampler(server, llama, compared):
    """Of the policy, whose weights the server has taken."""
    made = vllm.VLLMSampler(f"{address(server)}/", Accelerator(cpu=True))
    made.transfer = lambda policy: "m"
    made.sync(llama, 1)
    return made


def reply(ids=(5, 6), logps=(-0.5, -0.25)):
    """Of /v1/completions, with the ids of tokens."""
    return {"choices": [{"index": 0, "token_ids": list(ids), "logprobs": {"token_logprobs": list(logps)}}]}


def drawn(sampler, llama, server, answer):
    server.faults = [answer]
    return sampler(llama, [(7,)], 1, Sampling(max_tokens=2), torch.tensor([3]))


def test_what_a_server_wrote_is_read_from_its_http_reply(sampler, llama, server):
    sampled = drawn(sampler, llama, server, (200, reply()))
    assert sampled.completion_ids.tolist() == [[[5, 6]]] and sampled.mask.all()
    assert sampled.logps.tolist() == [[[-0.5, -0.25]]]


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (404, "did not write completions: 404, .*fault 404"),
        (500, "did not write completions: 500, .*fault 500"),
        ((200, {"error": {"message": "no memory"}}), "status 200 with an error inside, .*no memory"),
        ((200, {"id": "x"}), "answered without 'choices'"),
        ((200, "<html>"), "answered with what is no JSON"),
        ("drop", "did not answer .* Is it still running"),
        ((200, {"choices": []}), "answered with"),
        ((200, reply((5, 6, 4), (-1, -1, -1))), "3 tokens with 3 log-probs, where 1 to 2 were to be written"),
        ((200, reply((), ())), "0 tokens"),
        ((200, reply((5, 6), (-1,))), "2 tokens with 1 log-probs"),
        ((200, reply(logps=(-0.5, -9999.0))), "a log-prob of -9999.0"),
        ((200, reply((5, 30))), "the token 30, which the policy, with 30 tokens, does not have"),
        ((200, reply(logps=(-0.5, 0.25))), "a log-prob of 0.25, and every one is above -9999 and at most 0"),
        ((200, json.dumps(reply(logps=(-0.5, float("nan"))))), "a log-prob of nan"),
        ((200, json.dumps(reply(logps=(float("-inf"), -1)))), "a log-prob of -inf"),
        ((200, reply() | {"choices": reply()["choices"] * 2}), "2 completions, not 1"),
    ],
)
def test_what_is_no_answer_is_an_error_that_names_the_server_and_what_to_do(sampler, llama, server, answer, message):
    with pytest.raises(
        PrefoptError, match=rf"(?s)the vLLM server {address(server)}.*{message}.*docs/vllm.md says, .*--resume"
    ):
        drawn(sampler, llama, server, answer)


def test_a_server_that_has_gone_away_is_named(sampler, llama, server):
    server.stopped.set()
    sampler.transfer = vllm_weights.WholeFiles(sampler.server)
    with pytest.raises(
        PrefoptError, match=rf"{address(server)}, asked to take over the policy's weights, did not answer"
    ):
        sampler.sync(llama, 2)


def test_a_server_without_what_it_takes_weights_by_is_told_how_to_start(sampler, llama, server):
    server.listing = None
    sampler.transfer = None
    with pytest.raises(PrefoptError, match=r"takes no weights: start one with `VLLM_SERVER_DEV_MODE=1"):
        sampler.sync(llama, 2)


def test_a_server_of_another_kind_is_refused_at_once(server):
    server.listing = None
    with pytest.raises(PrefoptError, match=rf"{address(server)} is no vLLM server that is ready: /health answers 404"):
        vllm.VLLMSampler(address(server), Accelerator(cpu=True))


def test_refused_where_nothing_answers():
    with pytest.raises(
        PrefoptError, match=r"no vLLM server at http://127.0.0.1:1 \(Connection refused\): start one with"
    ):
        vllm.VLLMSampler("http://127.0.0.1:1", Accelerator(cpu=True))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("localhost:8000", "rollouts.server: 'localhost:8000' is no address; write it like http://localhost:8000"),
        ("http://localhost:8000/v1/", "leave out /v1 at the end"),
    ],
)
def test_what_is_no_address_of_a_server_is_refused_while_planning(given, message):
    with pytest.raises(PrefoptError, match=message):
        check_sampler(Rollouts(sampler="vllm", server=given))


def test_refused_without_a_server():
    with pytest.raises(
        PrefoptError, match=r"rollouts.server is not given: start one with `VLLM_SERVER_DEV_MODE=1 vllm serve"
    ):
        check_sampler(Rollouts(sampler="vllm"))


def test_an_unknown_sampler_is_refused():
    with pytest.raises(PrefoptError, match=r"unknown sampler 'vlm'. Did you mean 'vllm'"):
        check_sampler(Rollouts(sampler="vlm"))
