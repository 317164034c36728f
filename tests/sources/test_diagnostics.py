import math

import pytest
import torch

from prefopt import Batch, Outputs
from prefopt.sources.diagnostics import RolloutDiagnostics, repetition
from prefopt.types import ORIGINS

POLICY, GREEDY = ORIGINS.index("policy"), ORIGINS.index("greedy")


@pytest.fixture
def batch():
    """Two prompts; the second has one completion of the policy's, and a greedy one that is nobody's business here."""
    ids = torch.tensor([[[4, 5, 4, 5, 4, 5], [4, 5, 6, 0, 0, 0]], [[7, 7, 7, 7, 0, 0], [9, 9, 9, 9, 9, 9]]])
    mask = torch.arange(6) < torch.tensor([[6, 3], [4, 6]])[..., None]
    columns = {
        "origin": torch.tensor([[POLICY, POLICY], [POLICY, GREEDY]]),
        "gold": torch.tensor([[1.0, math.nan], [3.0, 50.0]]),
        "sampler_logps": -torch.ones(2, 2, 6) * mask,
    }
    return Batch(((1,), (2,)), ids, mask, torch.tensor([[1.0, 2.0], [4.0, 50.0]]), columns=columns)


def outputs(batch, logp, **statistics):
    filled = {name: torch.full(batch.mask.shape, value) * batch.mask for name, value in statistics.items()}
    return Outputs(batch.mask, torch.full(batch.mask.shape, logp).double() * batch.mask, statistics=filled)


def test_by_hand(batch):
    found = RolloutDiagnostics()(batch, outputs(batch, -1.5, entropy=0.25), outputs(batch, -2.0))
    per_token = 0.5
    expected = {
        "reward": 7 / 3,
        "reward_std": math.sqrt(0.5),  # of the one prompt that has two
        "gold": 2.0,
        "length": 13 / 3,
        # 454545: 454 545 454 545; 456: one; 7777: 777 777
        "repetition": (0.5 + 0 + 0.5) / 3,
        "entropy": 0.25,
        "kl": per_token * 13 / 3,
        "kl_k3": (math.exp(-per_token) - 1 + per_token) * 13 / 3,
        "sampler_kl": 0.5,
        "sampler_ratio_max": math.exp(-0.5),
    }
    assert found == {f"rollouts/{name}": pytest.approx(value) for name, value in expected.items()}


def test_only_what_is_there(batch):
    bare = Batch(batch.prompt_ids, batch.completion_ids, batch.mask)
    found = RolloutDiagnostics()(bare, outputs(bare, -1.0, entropy=0.1), None)
    assert found.keys() == {"rollouts/length", "rollouts/repetition", "rollouts/entropy"}
    assert found["rollouts/length"] == 19 / 4
    exact = RolloutDiagnostics()(bare, outputs(bare, -1.0, entropy=0.1, kl_policy_ref=0.5), None)
    assert exact["rollouts/kl_exact"] == pytest.approx(0.5 * 19 / 4)


def test_repetition_is_of_written_tokens():
    ids, mask = torch.tensor([[[1, 2, 3, 1, 2, 3], [1, 2, 0, 0, 0, 0]]]), torch.ones(1, 2, 6, dtype=torch.bool)
    mask[0, 1, 2:] = False
    assert repetition(ids, mask).tolist() == [[0.25, 0.0]]  # 123 231 312 123


def test_repetition_does_not_reach_over_tokens_of_others():
    ids = torch.tensor([[[1, 2, 3, 9, 1, 2, 3]]])
    mask = torch.tensor([[[1, 1, 1, 0, 1, 1, 1]]], dtype=torch.bool)
    assert repetition(ids, mask).tolist() == [[0.5]]  # 123 and 123; not 231 or 312
