"""Reward models of rankings and ratings."""

import math

import pytest
import torch

from prefopt import Batch, Outputs
from prefopt.objectives.reward.bradley_terry import BradleyTerry
from prefopt.objectives.reward.k_wise import KWise
from prefopt.objectives.reward.plackett_luce import PlackettLuceReward
from prefopt.objectives.reward.regression import RatingRegression
from prefopt.types import Targets

OBJECTIVES = [KWise(), KWise(0.1), PlackettLuceReward(), PlackettLuceReward(0.1), RatingRegression()]


def total(objective, rewards, scores):
    """Rewards with gradient, and the loss; None is an absent completion."""
    mask = torch.tensor([[value is not None for value in row] for row in rewards])[:, :, None]
    values = torch.tensor([[value or 0.0 for value in row] for row in rewards], dtype=torch.float64, requires_grad=True)
    batch = Batch(((1,),) * len(rewards), mask.long(), mask, torch.tensor(scores, dtype=torch.float64))
    outputs = Outputs(mask, torch.zeros(mask.shape, dtype=torch.float64), rewards=values)
    return values, objective.loss(batch, outputs, Targets()).total


def nll(x):
    return math.log(1 + math.exp(-x))


@pytest.mark.parametrize("centering", [0.0, 0.1])
@pytest.mark.parametrize("cls", [KWise, PlackettLuceReward])
def test_of_two_they_are_bradley_terry(cls, centering):
    pairs, scores = [[0.3, -1.2], [-2.0, 0.5]], [[1.0, 0.0]] * 2
    found = [total(cls_(centering), pairs, scores) for cls_ in (cls, BradleyTerry)]
    torch.testing.assert_close(found[0][1], found[1][1])
    slopes = [torch.autograd.grad(loss.sum(), values)[0] for values, loss in found]
    torch.testing.assert_close(*slopes)


def test_k_wise_by_hand():
    """Scores 1, 0, 1: the pairs (0, 1) and (2, 1)."""
    assert total(KWise(), [[0.5, 1.0, -0.25]], [[1.0, 0.0, 1.0]])[1].item() == pytest.approx(
        (nll(-0.5) + nll(-1.25)) / 2, rel=1e-12
    )
    assert total(KWise(), [[0.5, 1.0]], [[1.0, 1.0]])[1].item() == 0


def test_plackett_luce_by_hand():
    rewards = [0.5, 1.0, -0.25]
    strength = [math.exp(r) for r in rewards]
    expected = -math.log(strength[0] / sum(strength) * strength[1] / sum(strength[1:]))
    assert total(PlackettLuceReward(), [rewards], [[2.0, 1.0, 0.0]])[1].item() == pytest.approx(expected, rel=1e-12)


def test_regression_by_hand():
    values, loss = total(RatingRegression(), [[0.5, 1.0, -0.25]], [[0.0, 1.0, 0.5]])
    assert loss.item() == pytest.approx((0.25 + 0 + 0.5625) / 3, rel=1e-12)
    loss.sum().backward()
    assert values.grad[0].tolist() == pytest.approx([1 / 3, 0, -0.5])


@pytest.mark.parametrize("objective", OBJECTIVES, ids=repr)
@pytest.mark.parametrize("completions", range(2, 10))
def test_a_short_list_is_the_same_beside_longer_ones(objective, completions):
    draw = torch.Generator().manual_seed(completions)
    short, long = torch.rand(completions, generator=draw).tolist(), torch.rand(10, generator=draw).tolist()
    scores = sorted(short, reverse=True)
    fill = 10 - completions
    values, beside = total(
        objective, [[*short, *[None] * fill], long], [[*scores, *[0] * fill], list(range(10, 0, -1))]
    )
    alone_values, alone = total(objective, [short], [scores])
    torch.testing.assert_close(beside[:1], alone)
    beside[0].backward()
    torch.testing.assert_close(values.grad[0, :completions], torch.autograd.grad(alone.sum(), alone_values)[0][0])
    assert not values.grad[0, completions:].any()
    assert not values.grad[1].any()


@pytest.mark.parametrize("cls", [KWise, PlackettLuceReward])
def test_centring_sees_the_constant_and_nothing_else(cls):
    """Mean 1 of three rewards: (2 · 1)² c, and a third of 2 · 2 · 2 c on each; at mean 0 nothing, however wide they lie."""
    scores = [[2.0, 1.0, 0.0]]
    values, with_ = total(cls(0.25), [[0.5, 3.0, -0.5]], scores)
    plain_values, without = total(cls(), [[0.5, 3.0, -0.5]], scores)
    assert (with_ - without).item() == pytest.approx(0.25 * 4, rel=1e-12)
    slopes = [torch.autograd.grad(loss.sum(), v)[0] for v, loss in ((values, with_), (plain_values, without))]
    assert (slopes[0] - slopes[1])[0].tolist() == pytest.approx([0.25 * 8 / 3] * 3)
    assert total(cls(0.25), [[-5.0, 5.0, 0.0]], scores)[1].item() == total(cls(), [[-5.0, 5.0, 0.0]], scores)[1].item()
