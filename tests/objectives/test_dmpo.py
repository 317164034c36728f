"""DMPO: the weights of turns, against the derivation that they come from and against the authors' rule."""

import dataclasses
import math

import pytest
import torch

from prefopt import Batch, Outputs, evaluate_loss
from prefopt.objectives.preference.dmpo import DMPO
from prefopt.objectives.preference.dpo import DPO

MASKS = [
    "1101110010111",  # four turns, of 2, 3, 1 and 3 tokens
    "1110011000000",  # two turns, then padding
]
TURNS = [[(0, 2), (3, 6), (8, 9), (10, 13)], [(0, 3), (5, 7)]]


def episodes(seed=0, garbage=0.0):
    """One pair of episodes with tokens of an environment in between; `garbage` stands where nothing must be read."""
    draw = torch.Generator().manual_seed(seed)
    mask = torch.tensor([[[c == "1" for c in row] for row in MASKS]])
    batch = Batch(((1,),), torch.randint(5, 50, mask.shape, generator=draw), mask)

    def outputs():
        logps = -torch.rand(mask.shape, generator=draw, dtype=torch.float64)
        return Outputs(mask, torch.where(mask, logps, garbage).requires_grad_())

    return batch, outputs(), outputs().detach()


def of_turns(policy, reference):
    """Δ of each turn of each episode, added up by hand."""
    ratio = (policy.logps - reference.logps).detach()[0]
    return [[ratio[k, a:b].sum().item() for a, b in turns] for k, turns in enumerate(TURNS)]


def by_occupancy(delta, gamma):
    """Σ_t γ^t log d(s_t, a_t)/d_ref(s_t, a_t) over Σ_t γ^t.

    Along one episode d(s_t, a_t) = γ^t Π_{k≤t} P(s_k | …) π(a_k | s_k) up to a constant, and the environment's P is the same under
    both: the log-ratio of turn t is the sum of Δ_k up to it.
    """
    upto = [sum(delta[: t + 1]) for t in range(len(delta))]
    return sum(gamma**t * value for t, value in enumerate(upto)) / sum(gamma**t for t in range(len(delta)))


@pytest.mark.parametrize("gamma", [0.0, 0.3, 0.7, 0.999999, 1.0])
def test_it_is_the_discounted_mean_of_occupancy_ratios(gamma):
    batch, policy, reference = episodes()
    chosen, rejected = (by_occupancy(delta, gamma) for delta in of_turns(policy, reference))
    loss = evaluate_loss(DMPO(0.3, gamma), batch, policy, reference)
    assert loss.item() == pytest.approx(math.log(1 + math.exp(-0.3 * (chosen - rejected))), rel=1e-9)


@pytest.mark.parametrize("gamma", [0.3, 0.7, 1.0])
def test_the_weights_are_those_of_the_authors_code(gamma):
    """γ^j (1 − γ^(n−j)) / (1 − γ^n) of round j of n, and (n − j)/n for γ = 1."""
    batch, _, reference = episodes()
    weights = DMPO(0.1, gamma).targets(batch, None, reference).rows["weights"][0]
    for k, turns in enumerate(TURNS):
        n = len(turns)
        expected = torch.zeros(13, dtype=torch.float64)
        for j, (start, end) in enumerate(turns):
            expected[start:end] = (n - j) / n if gamma == 1 else gamma**j * (1 - gamma ** (n - j)) / (1 - gamma**n)
        torch.testing.assert_close(weights[k], expected, rtol=1e-12, atol=0)


def test_the_gradient_by_hand():
    batch, policy, reference = episodes()
    objective = DMPO(0.3, 0.7)
    evaluate_loss(objective, batch, policy, reference).backward()
    chosen, rejected = (by_occupancy(delta, 0.7) for delta in of_turns(policy, reference))
    pull = 0.3 / (1 + math.exp(0.3 * (chosen - rejected)))
    signs = torch.tensor([-pull, pull], dtype=torch.float64)[None, :, None]
    weights = objective.targets(batch, None, reference).rows["weights"]
    torch.testing.assert_close(policy.logps.grad, signs * weights, rtol=1e-12, atol=0)


def test_what_the_environment_says_counts_for_nothing():
    losses = [evaluate_loss(DMPO(), *episodes(garbage=value)) for value in (0.0, -7.5)]
    assert losses[0].item() == losses[1].item()


@pytest.mark.parametrize("gamma", [0.0, 0.7, 1.0])
def test_with_one_turn_it_is_dpo(pairs, gamma):
    batch, policy, reference = pairs
    mask = torch.ones(2, 2, 3, dtype=torch.bool)
    policy, reference = (dataclasses.replace(o, mask=mask) for o in (policy, reference))
    batch = Batch(batch.prompt_ids, batch.completion_ids, mask)
    found, expected = (evaluate_loss(o, batch, policy, reference) for o in (DMPO(0.3, gamma), DPO(0.3)))
    assert found.item() == pytest.approx(expected.item(), rel=1e-12)


def test_without_a_discount_to_the_first_turn_the_rest_is_not_learnt():
    """γ = 0 is DPO of the first turns."""
    batch, policy, reference = episodes()
    first = torch.zeros_like(batch.mask)
    for k, turns in enumerate(TURNS):
        first[0, k, : turns[0][1]] = True
    alone = [dataclasses.replace(o, mask=first) for o in (policy, reference)]
    of_first = evaluate_loss(DPO(0.3), dataclasses.replace(batch, mask=first), *alone)
    assert evaluate_loss(DMPO(0.3, 0.0), batch, policy, reference).item() == pytest.approx(of_first.item(), rel=1e-12)


def test_steps_of_the_data_are_turns_where_there_are_any():
    """A text in one run, its steps ending at places 2 and 5; the EOS behind them belongs to the last step."""
    mask = torch.ones(1, 2, 7, dtype=torch.bool)
    ends = torch.zeros_like(mask)
    ends[..., [2, 5]] = True
    batch = Batch(((1,),), mask.long(), mask, columns={"step_ends": ends})
    assert batch.steps.tolist() == [[[0, 0, 0, 1, 1, 1, 1]] * 2]
    reference = Outputs(mask, torch.zeros(mask.shape, dtype=torch.float64))
    weights = DMPO(gamma=0.5).targets(batch, None, reference).rows["weights"][0, 0]
    assert weights.tolist() == pytest.approx([1] * 3 + [0.5 * 0.5 / 0.75] * 4)


@pytest.mark.parametrize("gamma", [-0.1, 1.1])
def test_a_discount_is_from_0_to_1(gamma):
    with pytest.raises(ValueError, match="from 0 to 1"):
        DMPO(gamma=gamma)
