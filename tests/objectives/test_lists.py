"""Losses of ranked and rated lists: InfoNCA, NCA, EXOList, PlackettLuceDPO, RRHF, PRO, LiPO."""

import dataclasses
import itertools
import math

import pytest
import torch
from trl_dpo import assert_same, random_pairs

from prefopt import Batch, Outputs, evaluate_loss
from prefopt.objectives.preference.dpo import DPO
from prefopt.objectives.preference.exo import EXOList
from prefopt.objectives.preference.lipo import LiPO
from prefopt.objectives.preference.nca import NCA, InfoNCA
from prefopt.objectives.preference.plackett_luce import PlackettLuceDPO
from prefopt.objectives.preference.pro import PRO
from prefopt.objectives.preference.rrhf import RRHF

LISTWISE = [InfoNCA(0.7), NCA(0.7), EXOList(0.7, 0.5), PlackettLuceDPO(0.7), RRHF(), PRO(), LiPO(0.7)]


def scored(batch, scores):
    return dataclasses.replace(batch, scores=torch.tensor(scores, dtype=torch.float64).expand(len(batch), -1))


def lists(logps, scores):
    """One token a completion, best first; None is an absent completion. The reference says 0, so Δ, sums and means are `logps`."""
    present = torch.tensor([[value is not None for value in row] for row in logps])
    values = torch.tensor([[value or 0.0 for value in row] for row in logps], dtype=torch.float64)[:, :, None]
    mask = present[:, :, None]
    judged = torch.tensor(scores, dtype=torch.float64)
    batch = Batch(((1,),) * len(logps), mask.long(), mask, scores=judged)
    return batch, Outputs(mask, values.requires_grad_()), Outputs(mask, torch.zeros_like(values))


def total(objective, case):
    batch, policy, reference = case
    return objective.loss(batch, policy, objective.targets(batch, None, reference)).total


@pytest.mark.parametrize("objective", LISTWISE, ids=repr)
@pytest.mark.parametrize("completions", range(2, 10))
def test_a_short_list_is_the_same_beside_longer_ones(objective, completions):
    draw = torch.Generator().manual_seed(completions)
    row = (-3 * torch.rand(completions, generator=draw)).tolist()
    scores = sorted(torch.rand(completions, generator=draw).tolist(), reverse=True)
    alone = lists([row], [scores])
    fill = 10 - completions
    case = lists([row + [None] * fill, [-1.0] * 10], [scores + [0.0] * fill, [1.0 - i / 10 for i in range(10)]])
    torch.testing.assert_close(total(objective, case)[:1], total(objective, alone))
    slopes = [torch.autograd.grad(total(objective, c)[0], c[1].logps)[0][0, :, 0] for c in (case, alone)]
    torch.testing.assert_close(slopes[0][:completions], slopes[1])
    assert not slopes[0][completions:].any()


def test_plackett_luce_of_two_is_dpo():
    batch, policy, reference = random_pairs()
    assert_same(
        evaluate_loss(PlackettLuceDPO(0.3), batch, policy, reference),
        evaluate_loss(DPO(0.3), batch, policy, reference),
        policy,
    )


def test_plackett_luce_is_a_distribution_over_orders():
    values = [-1.0, 0.5, -2.0, 0.1]
    chances = [
        math.exp(-total(PlackettLuceDPO(1.0), lists([order], [[0.0] * 4])).item())
        for order in itertools.permutations(values)
    ]
    assert sum(chances) == pytest.approx(1, rel=1e-12)
    strength = [math.exp(v) for v in values]
    by_hand = math.prod(strength[i] / sum(strength[i:]) for i in range(4))
    assert math.exp(-total(PlackettLuceDPO(1.0), lists([values], [[0.0] * 4])).item()) == pytest.approx(by_hand)


def test_infonca_of_a_sure_pair_is_dpo():
    """α → 0 makes the targets (1, 0)."""
    batch, policy, reference = random_pairs()
    ours = evaluate_loss(InfoNCA(0.3, alpha=1e-3), scored(batch, [1.0, 0.0]), policy, reference)
    assert_same(ours, evaluate_loss(DPO(0.3), batch, policy, reference), policy)


def test_nca_and_infonca_by_hand():
    delta, scores, beta, alpha = [0.5, -1.0, 2.0], [1.0, 0.2, 0.5], 0.4, 0.5
    case = lists([delta], [scores])
    weight = [math.exp(r / alpha) for r in scores]
    p = [w / sum(weight) for w in weight]
    normaliser = math.log(sum(math.exp(beta * d) for d in delta))
    assert total(InfoNCA(beta, alpha), case).item() == pytest.approx(
        -sum(q * (beta * d - normaliser) for q, d in zip(p, delta, strict=True)), rel=1e-12
    )

    def log_sigmoid(x):
        return -math.log(1 + math.exp(-x))

    assert total(NCA(beta, alpha), case).item() == pytest.approx(
        -sum(q * log_sigmoid(beta * d) + log_sigmoid(-beta * d) / 3 for q, d in zip(p, delta, strict=True)), rel=1e-12
    )


def test_infonca_is_least_where_the_implicit_rewards_are_the_scores():
    scores, beta, alpha = [1.0, 0.2, -0.5], 0.4, 0.5
    optimum = lists([[r / (alpha * beta) + 1.3 for r in scores]], [scores])
    slope = torch.autograd.grad(total(InfoNCA(beta, alpha), optimum).sum(), optimum[1].logps)[0]
    assert slope.abs().max() < 1e-12


@pytest.mark.parametrize("cls", [InfoNCA, NCA])
@pytest.mark.parametrize("alpha", [0.0, -1.0])
def test_a_temperature_must_be_positive(cls, alpha):
    with pytest.raises(ValueError, match=r"alpha .* above 0"):
        cls(alpha=alpha)


def test_rrhf_by_hand():
    """Wrong pairs: (0, 1) by 1 and (2, 1) by .5; 0 and 2 are tied. The best is the first of the tied ones."""
    case = lists([[-2.0, -1.0, -1.5]], [[1.0, 0.0, 1.0]])
    assert total(RRHF(), case).item() == pytest.approx(1 + 0.5 + 2)
    slope = torch.autograd.grad(total(RRHF(0.5), case).sum(), case[1].logps)[0][0, :, 0]
    assert slope.tolist() == [-1 - 0.5, 2, -1]


def test_rrhf_compares_means_and_imitates_by_the_sum(pairs):
    batch, policy, _ = pairs
    batch = scored(batch, [0.0, 1.0])  # means (−7/6, −2), (−.5, −4); sums of the second −4, −4
    assert evaluate_loss(RRHF(), batch, policy).item() == pytest.approx((2 - 7 / 6 + 4 + 4 - 0.5 + 4) / 2)


def test_pro_by_hand():
    mean, scores = [-1.0, -0.5, -2.0], [1.0, 0.4, -0.2]
    gaps = [(1.2, 0.6, 1.2), (None, 0.6, 0.6)]  # g_11 = 1.2, g_12 = .6, g_13 = 1.2; g_22 = g_23 = .6
    first = [math.exp(g * v) for g, v in zip(gaps[0], mean, strict=True)]
    second = [math.exp(0.6 * v) for v in mean[1:]]
    expected = -math.log(first[0] / sum(first)) - math.log(second[0] / sum(second)) + 0.05 * 4 * 1.0
    assert total(PRO(), lists([mean], [scores])).item() == pytest.approx(expected, rel=1e-12)


def test_pro_compares_means_and_imitates_by_the_sum(pairs):
    """As the official code does: sums (−3.5, −4), (−1, −4) over 3, 2 and 2, 1 tokens."""
    batch, policy, _ = pairs
    batch = scored(batch, [1.0, 0.5])
    ranked = [math.log(1 + math.exp(0.5 * (bad - good))) for good, bad in ((-3.5 / 3, -2.0), (-0.5, -4.0))]
    expected = (sum(ranked) + 0.3 * (3.5 + 1.0)) / 2
    assert evaluate_loss(PRO(0.3), batch, policy).item() == pytest.approx(expected, rel=1e-12)


def test_lipo_by_hand():
    """The policy ranks the second first: ranks 2, 1, 3."""
    delta, scores, beta = [0.5, 1.5, -1.0], [1.0, 0.5, 0.0], 0.4
    rank = [2, 1, 3]
    expected = 0.0
    for i, j in ((0, 1), (0, 2), (1, 2)):
        gain = 2 ** scores[i] - 2 ** scores[j]
        discount = abs(1 / math.log(1 + rank[i]) - 1 / math.log(1 + rank[j]))
        expected += gain * discount * math.log(1 + math.exp(-beta * (delta[i] - delta[j])))
    assert total(LiPO(beta), lists([delta], [scores])).item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("objective", [RRHF(0.0), LiPO(0.7)], ids=repr)
def test_ties_have_no_order(objective):
    assert total(objective, lists([[-1.0, -2.0]], [[0.5, 0.5]])).item() == 0
