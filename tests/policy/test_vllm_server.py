"""The sampler against a real vLLM server: ids in and out, log-probs, seeds, ends, adapters and whole weights."""

import copy

import pytest
import torch
from accelerate import Accelerator

from prefopt import PrefoptError
from prefopt.policy import Reference, load_policy, load_tokenizer
from prefopt.policy.decode.vllm import VLLMSampler
from prefopt.recipe import Policy as PolicySection
from prefopt.recipe import Sampling
from prefopt.types import Batch, Needs

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("vllm")]
LONG = tuple(1 + place % 29 for place in range(150))
"""More than a block of the server's prefix cache, which has 128 tokens on CPUs."""
PROMPTS = [(1, 2, 3), LONG]


def loaded(folder, seed=0, **fields):
    section = PolicySection.model_validate({"model": str(folder), **fields})
    return load_policy(section, load_tokenizer(section), seed).eval()


@pytest.fixture
def sampler(vllm_server):
    return VLLMSampler(vllm_server, Accelerator(cpu=True))


def moved(policy, seed):
    """The same with other trainable weights."""
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in policy.parameters():
            if weight.requires_grad:
                weight += torch.randn(weight.shape, generator=draw) * 0.05
    return policy


@torch.no_grad()
def distance(sampler, model, temperature=0.7, **more):
    """Largest difference of log-probs between the server and the policy, on what the server wrote."""
    settings = Sampling(temperature=temperature, max_tokens=8, **more)
    sampled = sampler(model, PROMPTS, 3, settings, torch.tensor([3, 4]))
    warmth = torch.full((2,), temperature or 1.0)
    batch = Batch(tuple(PROMPTS), sampled.completion_ids, sampled.mask, columns={"temperature": warmth})
    logps = model(batch, Needs()).logps
    return (logps - sampled.logps)[sampled.mask].abs().max().item()


def test_log_probs_are_the_policys_at_the_temperature(sampler, served_folder):
    policy = loaded(served_folder)
    sampler.sync(policy, 0)
    assert distance(sampler, policy, 0.7) < 1e-4
    assert distance(sampler, policy, 2.0) < 1e-4
    assert distance(sampler, policy, 0.0) < 1e-4  # greedy, at temperature 1


def test_noise_is_the_seeds_and_ends_are_the_recipes(sampler, served_folder):
    policy = loaded(served_folder)
    sampler.sync(policy, 0)
    settings = Sampling(max_tokens=40, stop=("good", "bad"))
    seeds = torch.tensor([5, 6])
    first, again, others = (sampler(policy, PROMPTS, 4, settings, s) for s in (seeds, seeds, seeds + 100))
    assert torch.equal(first.completion_ids, again.completion_ids)
    assert not torch.equal(first.mask, others.mask)
    ends = {0, *policy.tokenizer.convert_tokens_to_ids(["good", "bad"])}
    rows = [
        row[mask].tolist()
        for row, mask in zip(first.completion_ids.flatten(0, 1), first.mask.flatten(0, 1), strict=True)
    ]
    assert all(len(row) == 40 or row[-1] in ends for row in rows) and any(len(row) < 40 for row in rows)
    assert not any(ends & {*row[:-1]} for row in rows)
    cut = sampler(policy, PROMPTS, 2, Sampling(top_k=3, max_tokens=4), seeds)
    assert cut.logps is None  # they would be of three tokens


def test_an_adapter_goes_over_once_a_version_and_the_reference_is_the_base(sampler, served_folder):
    policy = loaded(served_folder, adapter={"r": 4})
    for version in range(4):  # more than the server holds at a time
        sampler.sync(moved(policy, version), version)
        name = sampler.name
        assert distance(sampler, policy) < 1e-4
        sampler.sync(policy, version)
        assert sampler.name == name
        reference = Reference(policy)
        sampler.sync(reference, None)
        assert distance(sampler, reference) < 1e-4
    assert distance(sampler, policy) < 1e-4
    listed = sampler.server.session.get(f"{sampler.server.address}/v1/models").json()["data"]
    assert [one["id"] for one in listed][1:] == [sampler.name]


def test_whole_weights_go_over_with_a_head_that_is_the_embedding(sampler, served_folder):
    policy = loaded(served_folder)
    sampler.sync(policy, 0)
    before = copy.deepcopy(policy)
    sampler.sync(moved(policy, 1), 1)
    assert distance(sampler, policy) < 1e-4
    with pytest.raises(PrefoptError, match="samples the policy alone"):
        sampler(Reference(before), PROMPTS, 1, Sampling(), torch.tensor([1, 2]))
    reference = Reference(before)
    sampler.sync(reference, None)
    assert distance(sampler, reference) < 1e-4
    with pytest.raises(PrefoptError, match="either adapters over its own model or other weights"):
        sampler.sync(loaded(served_folder, adapter={}), 0)
    sampler.sync(loaded(served_folder), 2)  # for those that come after


def test_another_model_than_the_servers_is_refused(sampler, served_folder):
    sampler.sync(loaded(served_folder), 0)  # as it was
    other = VLLMSampler(sampler.server.address, Accelerator(cpu=True))
    policy = loaded(served_folder, adapter={})
    with torch.no_grad():
        policy.causal.get_input_embeddings().weight *= 2
    with pytest.raises(PrefoptError, match=r"differ from the policy's by .* nats a token; it serves another model"):
        other.sync(policy, 0)


def test_what_the_server_refuses_is_said_in_its_words(sampler, served_folder):
    with pytest.raises(
        PrefoptError, match=r"did not load the policy's adapter: .*rank 64 is greater than max_lora_rank 32"
    ):
        sampler.sync(loaded(served_folder, adapter={"r": 64}), 0)
    policy = loaded(served_folder, adapter={})
    sampler.sync(policy, 0)
    with pytest.raises(
        PrefoptError, match=r"reads 256 tokens \(--max-model-len\), and a prompt of 150 with max_tokens 107"
    ):
        sampler(policy, PROMPTS, 1, Sampling(max_tokens=107), torch.tensor([1, 2]))
