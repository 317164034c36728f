"""Memory that runs out while a faster way to compute is compared says nothing of the architecture, and nothing is remembered."""

import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM

from prefopt import Batch, Needs, PrefoptError
from prefopt.policy import Policy
from prefopt.policy.decode import reading
from prefopt.policy.decode.reading import SharedReading, reading_of
from prefopt.policy.loading import loaded
from prefopt.policy.rows import verified

PROMPTS = [[3, 4, 5, 6, 7], [8, 9], [10, 11, 12, 13]]
FULL = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")


@pytest.fixture
def policy(tiny):
    torch.manual_seed(0)
    return Policy(AutoModelForCausalLM.from_config(transformers.LlamaConfig(**tiny)).eval())


@pytest.fixture
def batch():
    """Two completions of each prompt, so that rows are shared."""
    tokens = torch.randint(3, 30, (3, 2, 4), generator=torch.Generator().manual_seed(0))
    return Batch(tuple(map(tuple, PROMPTS)), tokens, torch.ones(3, 2, 4, dtype=torch.bool))


def full(*_, **__):
    raise FULL


PLACES = {
    "the chunked head": ("prefopt.policy.policy", "token_statistics"),
    "the model itself": ("prefopt.policy.policy.Policy", "_own_logps"),
    "shared rows": ("prefopt.policy.rows.prefix_sharing", "tree_masks"),
}


@pytest.mark.parametrize("place", PLACES)
def test_memory_is_not_taken_for_an_architecture(place, policy, batch, monkeypatch, caplog):
    expected = policy(batch, Needs()).logps
    verified.LONGEST.clear()
    fresh = Policy(policy.model)
    with monkeypatch.context() as patched:
        patched.setattr(".".join(PLACES[place]), full)
        with pytest.raises(torch.OutOfMemoryError):
            fresh(batch, Needs())
    assert fresh._head is None and not fresh._verified
    again = fresh(batch, Needs()).logps
    assert torch.equal(again, expected)
    assert fresh._head is not None and fresh._prefix_sharing.shares and fresh._prefix_sharing.packs
    assert not caplog.records  # no fall-back is told of


def test_memory_is_not_taken_for_an_architecture_that_cannot_write_from_shared_prompts(policy, monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr(reading.SharedReading, "start", full)
        with pytest.raises(torch.OutOfMemoryError):
            reading_of(policy, PROMPTS, 2)
    assert not any(verified.LONGEST.values())
    assert isinstance(reading_of(policy, PROMPTS, 2), SharedReading)


def test_memory_is_not_taken_for_a_damaged_folder():
    with pytest.raises(PrefoptError, match=r"loading the model some/model: out of memory; lower policy\.dtype"):
        loaded("some/model", "model", full)
