import dataclasses
import math

import pytest
import torch
from trl_dpo import assert_same, random_pairs, trl_dpo

from prefopt import evaluate_loss
from prefopt.objectives.contract import check_objective
from prefopt.objectives.preference.dpo import DPO
from prefopt.objectives.preference.dponll import DPONLL

# The pairs of conftest.py: Δ_w − Δ_l, and the sum and the length of what is chosen.
MARGIN, CHOSEN, LENGTH = [1.5, 5.0], [-3.5, -1.0], [3, 2]


@pytest.mark.parametrize("normaliser", ["length", "sum"])
def test_contract(normaliser):
    check_objective(DPONLL(normaliser=normaliser))


@pytest.mark.parametrize("normaliser", ["length", "sum"])
def test_value_and_gradient_by_hand(normaliser, pairs):
    batch, policy, reference = pairs
    beta, alpha = 0.7, 0.3
    loss = evaluate_loss(DPONLL(beta, alpha, normaliser), batch, policy, reference)
    n = LENGTH if normaliser == "length" else [1, 1]
    expected = sum(math.log(1 + math.exp(-beta * m)) - alpha * s / k for m, s, k in zip(MARGIN, CHOSEN, n, strict=True))
    assert loss.item() == pytest.approx(expected / 2, abs=1e-12)
    pull = torch.tensor([beta / (1 + math.exp(beta * m)) / 2 for m in MARGIN], dtype=torch.float64)
    likelihood = alpha / torch.tensor(n, dtype=torch.float64) / 2
    (found,) = torch.autograd.grad(loss, policy.logps)
    by_hand = torch.stack([-pull - likelihood, pull], 1)[:, :, None] * batch.mask
    torch.testing.assert_close(found, by_hand, rtol=0, atol=1e-12)


def test_metrics(pairs):
    batch, policy, reference = pairs
    for objective in (DPONLL(0.5), DPONLL(0.5, normaliser="sum")):  # one unit, whatever is minimised
        metrics = objective.loss(batch, policy, objective.targets(batch, None, reference)).metrics
        assert metrics["nll"].tolist() == pytest.approx([3.5 / 3, 0.5])
        assert metrics["rewards/margin"].tolist() == pytest.approx([0.75, 2.5])


@pytest.mark.parametrize("normaliser", ["length", "sum"])
def test_without_likelihood_it_is_dpo(normaliser):
    batch, policy, reference = random_pairs()
    ours, dpo = (evaluate_loss(o, batch, policy, reference) for o in (DPONLL(0.3, 0.0, normaliser), DPO(0.3)))
    assert_same(ours, dpo, policy)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_trl_where_chosen_completions_are_of_one_length(dtype):
    batch, policy, reference = random_pairs(dtype=dtype)
    mask = batch.mask.clone()
    mask[:, 0] = torch.tensor([True, True, True, True, False, False])
    batch = dataclasses.replace(batch, mask=mask)
    policy, reference = (dataclasses.replace(o, mask=mask) for o in (policy, reference))
    ours = evaluate_loss(DPONLL(0.3, 0.6), batch, policy, reference)
    theirs = trl_dpo(["sigmoid", "sft"], policy, reference, beta=0.3, loss_weights=[1.0, 0.6])
    assert_same(ours, theirs, policy, rtol=1e-10 if dtype == torch.float64 else 1e-6)


def test_trl_weighs_tokens_where_lengths_differ():
    batch, policy, reference = random_pairs()
    ours = evaluate_loss(DPONLL(0.3, 1.0), batch, policy, reference)
    theirs = trl_dpo(["sigmoid", "sft"], policy, reference, beta=0.3)
    by_token = -policy.sum()[:, 0].sum() / batch.mask[:, 0].sum()
    by_completion = -policy.mean()[:, 0].mean()
    assert abs(by_token - by_completion) > 1e-3
    assert (theirs - ours).item() == pytest.approx((by_token - by_completion).item(), rel=1e-10)


def test_impossible_values_are_refused():
    with pytest.raises(ValueError, match="at least 0"):
        DPONLL(alpha=-0.1)
    with pytest.raises(ValueError, match="length, sum"):
        DPONLL(normaliser="tokens")
