"""vLLM needs a GPU, so the server's side is a stand-in; what is asked of it and what is made of its answer are tested."""

import pytest
import torch
from accelerate import Accelerator

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


def test_refused_where_vllm_is_absent():
    with pytest.raises(PrefoptError, match=r"vLLM is not installed.*prefopt-research\[vllm\].*sampler=transformers"):
        vllm.VLLMSampler("http://localhost:1", Accelerator(cpu=True))


def test_refused_without_a_server():
    with pytest.raises(
        PrefoptError, match=r"rollouts.server is not given: start one with `VLLM_SERVER_DEV_MODE=1 vllm serve"
    ):
        check_sampler(Rollouts(sampler="vllm"))


def test_an_unknown_sampler_is_refused():
    with pytest.raises(PrefoptError, match=r"unknown sampler 'vlm'. Did you mean 'vllm'"):
        check_sampler(Rollouts(sampler="vlm"))
