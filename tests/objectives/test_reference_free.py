"""Pairwise losses without a reference: SimPO, AlphaPO, CPO, ORPO, SLiC."""

import math

import pytest
import torch
from trl_dpo import assert_same, random_pairs

from prefopt import evaluate_loss
from prefopt.objectives.preference.alphapo import HIGHEST, AlphaPO
from prefopt.objectives.preference.cpo import CPO
from prefopt.objectives.preference.dpo import DPO
from prefopt.objectives.preference.orpo import ORPO, log1mexp
from prefopt.objectives.preference.simpo import SimPO
from prefopt.objectives.preference.slic import SLiC

# The pairs of conftest.py: sums (−3.5, −4), (−1, −4); means (−7/6, −2), (−.5, −4).
SUMS = ((-3.5, -4.0), (-1.0, -4.0))
MEANS = ((-7 / 6, -2.0), (-0.5, -4.0))


def nll(x):
    return math.log(1 + math.exp(-x))


@pytest.mark.parametrize(("alpha", "rtol"), [(0.0, 1e-12), (1e-7, 1e-5)])
def test_alphapo_tends_to_simpo(alpha, rtol):
    batch, policy, _ = random_pairs()
    assert_same(
        evaluate_loss(AlphaPO(2.5, 0.5, alpha), batch, policy),
        evaluate_loss(SimPO(2.5, 0.5), batch, policy),
        policy,
        rtol,
    )


def test_alphapo_survives_a_hopeless_completion(pairs):
    batch, policy, _ = pairs
    policy.logps.data[:, 1, 0] = -1e4
    loss = evaluate_loss(AlphaPO(alpha=2.0), batch, policy)
    loss.backward()
    assert loss.isfinite()
    assert policy.logps.grad.isfinite().all()
    assert math.exp(HIGHEST) < torch.finfo(torch.float32).max


def test_simpo_and_alphapo_by_hand(pairs):
    batch, policy, _ = pairs
    assert evaluate_loss(SimPO(3.0, 0.6), batch, policy).item() == pytest.approx(
        sum(nll(3 * (w - r) - 0.6) for w, r in MEANS) / 2, rel=1e-12
    )

    def reward(mean):
        return (1 - math.exp(-0.5 * mean)) / 0.5

    assert evaluate_loss(AlphaPO(3.0, 0.6, 0.5), batch, policy).item() == pytest.approx(
        sum(nll(3 * (reward(w) - reward(r)) - 0.6) for w, r in MEANS) / 2, rel=1e-12
    )


def test_cpo_without_imitation_is_dpo_against_a_uniform_reference():
    batch, policy, _ = random_pairs()
    nowhere = policy.detach()
    nowhere = type(nowhere)(nowhere.mask, torch.zeros_like(nowhere.logps))
    ours = evaluate_loss(CPO(0.8, alpha=0.0), batch, policy)
    assert_same(ours, evaluate_loss(DPO(0.8), batch, policy, nowhere), policy)


def test_cpo_by_hand_imitates_each_chosen_completion_by_its_own_mean(pairs):
    """TRL divides by the chosen tokens of all rows instead."""
    batch, policy, _ = pairs
    expected = sum(nll(0.3 * (w - r)) - 0.7 * mean for (w, r), (mean, _) in zip(SUMS, MEANS, strict=True)) / 2
    assert evaluate_loss(CPO(0.3, 0.7), batch, policy).item() == pytest.approx(expected, rel=1e-12)


def test_orpo_by_hand(pairs):
    batch, policy, _ = pairs

    def log_odds(mean):
        return mean - math.log(1 - math.exp(mean))

    expected = sum(-w + 0.3 * nll(log_odds(w) - log_odds(r)) for w, r in MEANS) / 2
    assert evaluate_loss(ORPO(0.3), batch, policy).item() == pytest.approx(expected, rel=1e-12)


def test_log1mexp_is_accurate_at_both_ends():
    x = torch.tensor([-1e-6, -0.5, -0.7, -5.0, -40.0], dtype=torch.float64, requires_grad=True)
    expected = [math.log(-math.expm1(v)) if v > -0.7 else math.log1p(-math.exp(v)) for v in x.tolist()]
    torch.testing.assert_close(log1mexp(x), torch.tensor(expected, dtype=torch.float64), rtol=1e-12, atol=0)
    assert torch.autograd.gradcheck(log1mexp, x[1:])


def test_slic_by_hand(pairs):
    """Margins .5 and 3: with δ = 1 only the first is short, by .5."""
    batch, policy, _ = pairs
    loss = evaluate_loss(SLiC(1.0, 0.2), batch, policy)
    assert loss.item() == pytest.approx((0.5 + 0.2 * 3.5 + 0.2 * 1.0) / 2, rel=1e-12)
    loss.backward()
    slope = torch.tensor([[-1.2, 1.0], [-0.2, 0.0]], dtype=torch.float64)[:, :, None] / 2
    torch.testing.assert_close(policy.logps.grad, slope * batch.mask)
