"""vLLM needs a GPU, so the server's side is a stand-in; what is asked of it and what is made of its answer are tested.

Failures are those of a real HTTP server, asked by TRL's own client; only what needs a GPU, sending weights, is left out.
"""

import json

import pytest
import torch
from _server import Loopback
from accelerate import Accelerator
from requests.adapters import HTTPAdapter
from trl.generation import vllm_client

from prefopt import PrefoptError
from prefopt.policy import Reference, check_sampler
from prefopt.policy.decode import vllm
from prefopt.recipe import Recipe, Rollouts, Sampling


class StandIn:
    """Answers every prompt with its seed's parity, in the form that TRL 1.16's `VLLMClient.generate` documents."""

    def __init__(self):
        self.updated = []

    def init_communicator(self, device):
        self.device = device

    def update_model_params(self, model):
        self.updated.append(model)

    def reset_prefix_cache(self):
        pass

    def generate(self, prompts, n, generation_kwargs, **settings):
        assert settings == {"temperature": 0.5, "top_p": 0.9, "top_k": 3, "max_tokens": 4}
        assert generation_kwargs["stop_token_ids"] == [0]
        length = 1 + generation_kwargs["seed"] % 2
        return {
            "completion_ids": [[len(prompts[0])] * length] * n,
            "logprobs": [[[-0.5]] * length] * n,
        }


def test_a_request_for_each_prompt_after_the_weights(llama, monkeypatch):
    server = StandIn()
    monkeypatch.setattr(vllm, "_connect", lambda address: server)
    sampler = vllm.VLLMSampler("http://localhost:1", Accelerator(cpu=True))
    settings = Sampling(temperature=0.5, top_p=0.9, top_k=3, max_tokens=4)
    sampler.sync(llama, 7)
    sampler.sync(llama, 7)  # the same update: nothing is sent again
    sampled = sampler(llama, [(5,), (6, 7, 8)], 2, settings, torch.tensor([2, 3]))
    assert server.updated == [llama.causal]
    assert sampled.completion_ids.tolist() == [[[1, 0]] * 2, [[3, 3]] * 2]
    assert sampled.mask.tolist() == [[[True, False]] * 2, [[True, True]] * 2]
    assert sampled.logps.tolist() == [[[-0.5, 0]] * 2, [[-0.5, -0.5]] * 2]

    sampler.sync(llama, 8)
    sampler.sync(llama, None)
    assert server.updated == [llama.causal] * 3


def test_what_the_server_has_no_weights_of_is_refused(llama, monkeypatch):
    monkeypatch.setattr(vllm, "_connect", lambda address: StandIn())
    sampler = vllm.VLLMSampler("http://localhost:1", Accelerator(cpu=True))
    sampler.sync(Reference(llama), None)
    with pytest.raises(PrefoptError, match="samples the policy alone"):
        sampler(llama, [(5,)], 1, Sampling(), torch.tensor([2]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"policy": {"model": "m", "adapter": {}}}, "rollouts.sampler is vllm: .* without an adapter"),
        ({"source": {"writers": ["mixture"]}}, "source.writers has mixture"),
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
def sampler(server, llama, monkeypatch):
    """Of the policy, by TRL's client, which asks once and has no weights to send."""
    monkeypatch.setattr(vllm_client, "is_vllm_available", lambda: True)
    monkeypatch.setattr(vllm_client.VLLMClient, "init_communicator", lambda client, device: None)
    monkeypatch.setattr(vllm_client.VLLMClient, "update_model_params", lambda client, model: None)
    made = vllm.VLLMSampler(f"{address(server)}/", Accelerator(cpu=True))
    made.client.session.mount("http://", HTTPAdapter())
    server.faults = [(200, {"success": True})]
    made.sync(llama, 1)
    return made


def reply(ids=(5, 6), logps=(-0.5, -0.25)):
    """Of /v1/completions, with the ids of tokens."""
    listed = {
        "tokens": [f"token_id:{token}" for token in ids],
        "token_logprobs": list(logps),
        "top_logprobs": [{f"token_id:{token}": logp} for token, logp in zip(ids, logps, strict=False)],
    }
    return {"choices": [{"prompt_token_ids": [7], "token_ids": list(ids), "logprobs": listed}]}


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
        (404, "did not write completions: Request failed: 404, .*fault 404"),
        (500, "did not write completions: Request failed: 500, .*fault 500"),
        ((200, {"error": {"message": "no memory"}}), "status 200 with an error inside, .*no memory"),
        ((200, {"id": "x"}), "answered without 'choices'"),
        ((200, "<html>"), "answered with what is no JSON"),
        ("drop", "did not answer .* Is it still running"),
        ((200, {"choices": []}), "answered with"),
        ((200, reply((5, 6, 4), (-1, -1, -1))), "3 tokens with 3 log-probs, where 1 to 2 were to be written"),
        ((200, reply((), ())), "0 tokens"),
        ((200, reply((5, 6), (-1,))), "answered with"),
        ((200, reply((5, 30))), "the token 30, which the policy, with 30 tokens, does not have"),
        ((200, reply(logps=(-0.5, 0.25))), "a log-prob of 0.25, and every one is finite and at most 0"),
        ((200, json.dumps(reply(logps=(-0.5, float("nan"))))), "a log-prob of NaN"),
        ((200, json.dumps(reply(logps=(float("-inf"), -1)))), "a log-prob of -inf"),
        ((200, reply() | {"choices": reply()["choices"] * 2}), "2 completions with 2 lists of log-probs, not 1"),
    ],
)
def test_what_is_no_answer_is_an_error_that_names_the_server_and_what_to_do(sampler, llama, server, answer, message):
    with pytest.raises(PrefoptError, match=rf"(?s)the vLLM server {address(server)}.*{message}.*vllm serve .*--resume"):
        drawn(sampler, llama, server, answer)


def test_a_server_that_has_gone_away_is_named(sampler, llama, server):
    server.stopped.set()
    with pytest.raises(
        PrefoptError, match=rf"{address(server)}, asked to take over the policy's weights, did not answer"
    ):
        sampler.sync(llama, 2)


def test_a_server_of_another_kind_is_refused_at_once(server):
    server.listing = None
    with pytest.raises(PrefoptError, match=rf"{address(server)} is no vLLM server that is ready: /health answers 404"):
        vllm.VLLMSampler(address(server), Accelerator(cpu=True))


def test_refused_where_vllm_is_absent(server):
    with pytest.raises(PrefoptError, match=r"vLLM is not installed.*prefopt-research\[vllm\].*sampler=transformers"):
        vllm.VLLMSampler(address(server), Accelerator(cpu=True))


def test_refused_where_nothing_answers():
    with pytest.raises(PrefoptError, match=r"no vLLM server at http://127.0.0.1:1 .*: start one with"):
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
