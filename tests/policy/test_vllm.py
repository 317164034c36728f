"""vLLM needs a GPU, so the server's side is a stand-in; what is asked of it and what is made of its answer are tested."""

import pytest
import torch
from accelerate import Accelerator

from prefopt import PrefoptError
from prefopt.policy import check_sampler
from prefopt.policy.decode import vllm
from prefopt.recipe import Rollouts, Sampling


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
    sampled = sampler(llama, [(5,), (6, 7, 8)], 2, settings, torch.tensor([2, 3]))
    assert server.updated == [llama.causal]
    assert sampled.completion_ids.tolist() == [[[1, 0]] * 2, [[3, 3]] * 2]
    assert sampled.mask.tolist() == [[[True, False]] * 2, [[True, True]] * 2]
    assert sampled.logps.tolist() == [[[-0.5, 0]] * 2, [[-0.5, -0.5]] * 2]


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
