"""GRPO and its kin, and RLOO: against TRL's loss code on the same tensors, and advantages by hand."""

import dataclasses

import pytest
import torch
from trl_grpo import rollouts, trl_grpo, trl_rloo

from prefopt import Batch, evaluate_loss
from prefopt.objectives import CISPO, DAPO, GRPO, GSPO, REINFORCE, RLOO, DrGRPO
from prefopt.objectives.online.advantage import (
    centred,
    last_token,
    leave_one_out,
    standardised,
    token_rewards,
    total_scores,
)

NAN = torch.nan


def assert_same(ours, theirs, policy, value=True):
    if value:
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)
    gradients = [torch.autograd.grad(loss, policy.logps, retain_graph=True)[0] for loss in (ours, theirs)]
    assert gradients[1].abs().max() > 0
    torch.testing.assert_close(*gradients, rtol=0, atol=1e-12)


def normalised(batch, e=1e-4):
    """TRL's: unbiased standard deviation, and e."""
    scores = batch.scores
    return (scores - scores.mean(1, keepdim=True)) / (scores.std(1, keepdim=True) + e)


GROUP = [
    (GRPO(beta=0.04), "grpo", {"beta": 0.04}),
    (GRPO(beta=0.0, epsilon=0.05), "grpo", {"epsilon_low": 0.05, "epsilon_high": 0.05}),
    (DAPO(), "dapo", {"epsilon_high": 0.28}),
    (DAPO(beta=0.1, epsilon=0.03, epsilon_high=0.06), "dapo", {"beta": 0.1, "epsilon_low": 0.03, "epsilon_high": 0.06}),
    (GSPO(), "grpo", {"importance_sampling_level": "sequence", "epsilon_low": 3e-4, "epsilon_high": 4e-4}),
    (GSPO(0.0, 0.02, 0.05), "grpo", {"importance_sampling_level": "sequence", "epsilon_low": 0.02, "epsilon_high": 0.05}),
    (CISPO(epsilon_high=0.05), "cispo", {"epsilon_high": 1.05}),
    (CISPO(), "cispo", {"epsilon_high": 5.0}),
]  # fmt: skip


@pytest.mark.parametrize(("ours", "loss_type", "config"), GROUP, ids=lambda x: repr(x) if hasattr(x, "needs") else "")
@pytest.mark.parametrize("tis", [None, 1.1])
def test_as_trl(ours, loss_type, config, tis):
    batch, policy, old, reference = rollouts(seed=3)
    weights = None
    if tis is not None:
        sampler = old.logps - 0.4 * torch.rand(old.logps.shape, dtype=torch.float64) + 0.1
        batch = dataclasses.replace(batch, columns={"sampler_logps": sampler})
        weights = (old.logps - sampler).exp().clamp(max=tis)
        assert (weights[batch.mask] == tis).any() and (weights[batch.mask] < tis).any()
    advantages = normalised(batch)
    theirs = trl_grpo(loss_type, policy, old, advantages, reference=reference, weights=weights, **config)
    mine = evaluate_loss(dataclasses.replace(ours, tis=tis), batch, policy, reference, old)
    assert_same(mine, theirs, policy)


def test_dr_grpo_as_trl():
    batch, policy, old, reference = rollouts(seed=4)
    advantages = batch.scores - batch.scores.mean(1, keepdim=True)
    theirs = trl_grpo("dr_grpo", policy, old, advantages, reference=reference, beta=0.1, max_completion_length=50)
    assert_same(evaluate_loss(DrGRPO(length=50.0, beta=0.1), batch, policy, reference, old), theirs, policy)


def test_the_clip_is_in_these_tests():
    """Otherwise they would show nothing of it."""
    batch, policy, old, reference = rollouts(seed=3)
    for objective in (GRPO(epsilon=0.05), GSPO(epsilon=0.02, epsilon_high=0.05), DAPO(0.0, 0.03, 0.06)):
        metrics = objective.loss(batch, policy, objective.targets(batch, old, reference)).metrics
        assert 0 < metrics["ratio/clipped"].mean() < 1


def test_rloo_as_trl_at_the_first_update():
    """TRL takes the ratio of whole completions, which is 1 then: one gradient."""
    batch, policy, _, reference = rollouts(seed=5)
    old = policy.detach()
    kl = ((old.logps - reference.logps) * old.mask).sum(-1)
    rewards = batch.scores - 0.05 * kl
    advantages = rewards - (rewards.sum(1, keepdim=True) - rewards) / 3
    ours = evaluate_loss(RLOO(), batch, policy, reference, old)
    assert_same(ours, trl_rloo(policy, old, advantages), policy, value=False)


def test_leave_one_out_is_k_over_k_minus_1_times_the_centred_score():
    scores = torch.randn(4, 5, dtype=torch.float64)
    present = torch.ones(4, 5, dtype=torch.bool)
    by_hand = [[row[i] - sum(row[:i] + row[i + 1 :]) / 4 for i in range(5)] for row in scores.tolist()]
    found = leave_one_out(scores, present)
    torch.testing.assert_close(found, torch.tensor(by_hand, dtype=torch.float64), rtol=0, atol=1e-12)
    torch.testing.assert_close(found, 5 / 4 * (scores - scores.mean(1, keepdim=True)), rtol=0, atol=1e-12)


def test_groups_with_absent_completions():
    scores = torch.tensor([[1.0, 3.0, NAN], [2.0, NAN, NAN], [NAN, NAN, NAN]], dtype=torch.float64)
    present = ~scores.isnan()
    assert leave_one_out(scores, present).tolist() == [[-2, 2, 0], [0, 0, 0], [0, 0, 0]]
    assert centred(scores, present).tolist() == [[-1, 1, 0], [0, 0, 0], [0, 0, 0]]
    half = 0.5**0.5
    assert standardised(scores, present, 0.0).tolist() == [pytest.approx([-half, half, 0]), [0, 0, 0], [0, 0, 0]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("e", [0.0, 1e-6])
def test_a_constant_group_has_no_advantage(dtype, e):
    scores = torch.full((2, 7), 0.1, dtype=dtype)  # whose mean, in fp32, is not 0.1
    assert (standardised(scores, torch.ones(2, 7, dtype=torch.bool), e) == 0).all()


@pytest.mark.parametrize(
    "objective", [GRPO(e=0.0), DAPO(), GSPO(), CISPO(), DrGRPO(), RLOO(), GRPO(beta=0.0)], ids=repr
)
def test_constant_groups_leave_a_finite_loss(objective):
    batch, policy, old, reference = rollouts(absent=((0, 3),), dtype=torch.float32)
    batch = dataclasses.replace(batch, scores=torch.full_like(batch.scores, 0.1))
    loss = evaluate_loss(objective, batch, policy, reference, old)
    (gradient,) = torch.autograd.grad(loss, policy.logps)
    assert loss.isfinite() and gradient.isfinite().all()
    if getattr(objective, "beta", 0) == 0:
        assert (gradient == 0).all()


def test_dr_grpo_is_rloo_up_to_a_factor_at_the_first_update():
    batch, policy, _, reference = rollouts(seed=6)
    old = policy.detach()
    ours = evaluate_loss(DrGRPO(length=1.0), batch, policy, reference, old)
    assert_same(ours, 3 / 4 * evaluate_loss(RLOO(beta=0.0), batch, policy, reference, old), policy, value=False)


def test_cispo_has_dapos_gradient_at_the_first_update():
    batch, policy, _, reference = rollouts(seed=7)
    old = policy.detach()
    one, other = (evaluate_loss(o, batch, policy, reference, old) for o in (CISPO(), DAPO()))
    assert_same(one, other, policy, value=False)


def test_cispo_keeps_the_gradient_that_dapo_drops():
    batch, policy, old, reference = rollouts(seed=8, moved=2.0)
    lost = {}
    for objective in (CISPO(), DAPO()):
        (gradient,) = torch.autograd.grad(evaluate_loss(objective, batch, policy, reference, old), policy.logps)
        lost[objective] = (gradient[batch.mask] == 0).sum().item()
    assert lost[CISPO()] == 0 < lost[DAPO()]


def test_reinforce_by_hand():
    batch, policy, old, reference = rollouts(seed=9, absent=((0, 1),))
    objective = REINFORCE(beta=0.2, baseline=0.7, seen=10.0)
    rewards = batch.scores - 0.2 * ((old.logps - reference.logps) * batch.mask).sum(-1)
    expected = -((rewards - 0.7) * policy.sum())[batch.present].sum() / 11
    assert_same(evaluate_loss(objective, batch, policy, reference, old), expected, policy)
    metrics = objective.targets(batch, old, reference).metrics
    moved = objective.adapted(metrics)
    total = 10 * 0.7 + rewards[batch.present].sum().item()
    assert (moved.baseline, moved.seen) == (pytest.approx(total / 21), 21)
    first = REINFORCE(beta=0.0)
    metrics = first.targets(batch, None, None).metrics
    assert first.adapted(metrics).baseline == pytest.approx(batch.scores[batch.present].mean().item())


def test_the_score_goes_to_the_last_token_of_the_mask():
    mask = torch.tensor([[[True, False, True, False], [True, True, True, True], [False] * 4]])
    assert last_token(mask).tolist() == [[[False, False, True, False], [False, False, False, True], [False] * 4]]
    batch = Batch(((1,),), mask.long(), mask, torch.tensor([[2.0, 3.0, 5.0]]))
    penalty = torch.full((1, 3, 4), 0.5)
    assert token_rewards(batch, penalty).tolist() == [[[-0.5, 0, 1.5, 0], [-0.5, -0.5, -0.5, 2.5], [0, 0, 0, 0]]]
    # A turn that ends at the second token of the second completion earned 4; what stands outside the mask is not read.
    batch = dataclasses.replace(batch, rewards=torch.tensor([[[0.0, 9, 0, 0], [0, 4, 0, 0], [9, 9, 9, 9]]]))
    assert token_rewards(batch, penalty).tolist() == [[[-0.5, 0, 1.5, 0], [-0.5, 3.5, -0.5, 2.5], [0, 0, 0, 0]]]
    assert total_scores(batch).tolist() == [[2, 7, 0]]


def test_metrics_by_hand():
    batch, policy, old, reference = rollouts(seed=10, prompts=2, absent=((1, 0), (1, 1), (1, 2), (1, 3)))
    objective = GRPO(epsilon=0.05)
    targets = objective.targets(batch, old, reference)
    metrics = objective.loss(batch, policy, targets).metrics
    mask = batch.mask[0]
    moved = (policy.logps - old.logps).detach()[0][mask]
    advantages = targets.rows["advantages"][0][mask]
    ratio = moved.exp()
    expected = {
        "ratio/mean": ratio.mean(),
        "ratio/max": ratio.max(),
        "ratio/kl": (ratio - 1 - moved).mean(),
        "ratio/clipped": (((ratio > 1.05) & (advantages > 0)) | ((ratio < 0.95) & (advantages < 0))).double().mean(),
    }
    for name, value in expected.items():
        assert metrics[name][0].item() == pytest.approx(value.item()), name
        assert metrics[name][1].isnan(), name
    assert set(metrics) == {*expected, "kl/loss"}
    log = (policy.logps - reference.logps).detach()[0][mask]
    assert metrics["kl/loss"][0].item() == pytest.approx(((-log).exp() - 1 + log).mean().item())
    assert targets.metrics["advantages/std"] > 0 and targets.metrics["episodes"] == 4
