import dataclasses
import math

import pytest
import torch
from trl_dpo import random_pairs

from prefopt import evaluate_loss
from prefopt.objectives.contract import check_objective
from prefopt.objectives.preference.exo import EXO
from prefopt.objectives.preference.ipo import IPO
from prefopt.objectives.preference.reward_aware_rpo import RewardAwareRPO
from prefopt.objectives.preference.softdpo import SoftDPO

DISTANCES = ("sq", "bwd", "fwd")
# The pairs of conftest.py: Δ_w − Δ_l is
MARGIN = [1.5, 5.0]


def scored(batch, *gaps):
    scores = torch.tensor([[1.0 + gap, 1.0] for gap in gaps], dtype=torch.float64)
    return dataclasses.replace(batch, scores=scores)


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def bernoulli_kl(p, q):
    return p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q))


def assert_same_gradient(one, other, policy):
    gradients = [torch.autograd.grad(loss, policy.logps, retain_graph=True)[0] for loss in (one, other)]
    assert gradients[0].abs().max() > 1e-6
    torch.testing.assert_close(*gradients, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("distance", DISTANCES)
def test_contract(distance):
    check_objective(RewardAwareRPO(distance=distance))


@pytest.mark.parametrize("distance", DISTANCES)
def test_value_and_gradient_by_hand(distance, pairs):
    batch, policy, reference = pairs
    beta, eta, gaps = 0.3, 2.0, (0.9, 0.2)
    loss = evaluate_loss(RewardAwareRPO(beta, eta, distance), scored(batch, *gaps), policy, reference)
    total, pull = 0.0, []
    for margin, gap in zip(MARGIN, gaps, strict=True):
        a, b = beta * margin, eta * gap
        p, q = sigmoid(a), sigmoid(b)
        total += {"sq": (a - b) ** 2, "bwd": bernoulli_kl(q, p), "fwd": bernoulli_kl(p, q)}[distance] / 2
        pull.append(beta * {"sq": 2 * (a - b), "bwd": p - q, "fwd": p * (1 - p) * (a - b)}[distance] / 2)
    assert loss.item() == pytest.approx(total, abs=1e-12)
    slope = torch.tensor(pull, dtype=torch.float64)
    (found,) = torch.autograd.grad(loss, policy.logps)
    torch.testing.assert_close(found, torch.stack([slope, -slope], 1)[:, :, None] * batch.mask, rtol=0, atol=1e-12)


@pytest.mark.parametrize("distance", DISTANCES)
def test_zero_where_the_margins_agree_and_pulls_back_beyond(distance, pairs):
    batch, policy, reference = pairs
    objective = RewardAwareRPO(0.2, 1.0, distance)
    met = evaluate_loss(objective, scored(batch, 0.3, 1.0), policy, reference)
    assert met.item() == pytest.approx(0, abs=1e-15)
    less = evaluate_loss(objective, scored(batch, 0.1, 0.5), policy, reference)
    (found,) = torch.autograd.grad(less, policy.logps)
    assert (found[:, 0][batch.mask[:, 0]] > 0).all() and (found[:, 1][batch.mask[:, 1]] < 0).all()


@pytest.mark.parametrize("tau", [0.1, 0.6])
def test_sq_is_ipo(tau):
    batch, policy, reference = random_pairs()
    ours = evaluate_loss(
        RewardAwareRPO(1.0, 1.0, "sq"), scored(batch, *[1 / (2 * tau)] * len(batch)), policy, reference
    )
    by_hand = ((policy.sum() - reference.sum()) @ torch.tensor([1.0, -1.0]).double() - 1 / (2 * tau)) ** 2
    for other in (by_hand.mean(), evaluate_loss(IPO(tau), batch, policy, reference)):
        torch.testing.assert_close(ours, other, rtol=1e-12, atol=0)
        assert_same_gradient(ours, other, policy)


def test_bwd_is_soft_dpo_less_the_entropy_of_the_label():
    batch, policy, reference = random_pairs()
    gaps = (-1.0, 0.0, 0.4, 1.0, 2.0)
    ours = evaluate_loss(RewardAwareRPO(0.3, 1.5, "bwd"), scored(batch, *gaps), policy, reference)
    chances = [sigmoid(1.5 * gap) for gap in gaps]
    preference = torch.tensor([[[0.5, p], [1 - p, 0.5]] for p in chances], dtype=torch.float64)
    soft = evaluate_loss(SoftDPO(0.3), dataclasses.replace(batch, preference=preference), policy, reference)
    entropy = -sum(p * math.log(p) + (1 - p) * math.log(1 - p) for p in chances) / 5
    assert ours.item() == pytest.approx(soft.item() - entropy, abs=1e-12)
    assert_same_gradient(ours, soft, policy)


@pytest.mark.parametrize("epsilon", [1e-3, 0.2])
def test_fwd_is_exo(epsilon):
    batch, policy, reference = random_pairs()
    gap = math.log(1 / epsilon - 1) / 2
    ours = evaluate_loss(RewardAwareRPO(0.3, 2.0, "fwd"), scored(batch, *[gap] * len(batch)), policy, reference)
    q = (0.3 * (policy.sum() - reference.sum())).softmax(-1)
    by_hand = (q * (q / torch.tensor([1 - epsilon, epsilon], dtype=torch.float64)).log()).sum(-1).mean()
    for other in (by_hand, evaluate_loss(EXO(0.3, epsilon), batch, policy, reference)):
        torch.testing.assert_close(ours, other, rtol=1e-10, atol=1e-12)
    assert_same_gradient(ours, evaluate_loss(EXO(0.3, epsilon), batch, policy, reference), policy)


@pytest.mark.parametrize("distance", DISTANCES)
def test_huge_scores_stay_finite(distance, pairs):
    batch, policy, reference = pairs
    narrow = [dataclasses.replace(o, logps=o.logps.detach().float().requires_grad_()) for o in (policy, reference)]
    loss = evaluate_loss(RewardAwareRPO(distance=distance), scored(batch, 1e4, -1e4), *narrow)
    (found,) = torch.autograd.grad(loss, narrow[0].logps)
    assert loss.isfinite() and found.isfinite().all()


def test_an_unknown_distance_is_refused():
    with pytest.raises(ValueError, match="sq, bwd, fwd"):
        RewardAwareRPO(distance="kl")
