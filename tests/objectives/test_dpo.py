import dataclasses
import math

import pytest
import torch

from prefopt import evaluate_loss
from prefopt.objectives import DPO
from prefopt.objectives.terms import Term, targets_of

# Sums: policy (−3.5, −4), (−1, −4); reference (−4.5, −3.5), (−3, −1). So Δ = (1, −.5), (2, −3) and Δ_w − Δ_l = 1.5, 5.
DELTA = [[1.0, -0.5], [2.0, -3.0]]
MARGIN = [1.5, 5.0]


@pytest.mark.parametrize("beta", [0.1, 0.7])
def test_value_and_gradient_by_hand(beta, pairs):
    batch, policy, reference = pairs
    loss = evaluate_loss(DPO(beta), batch, policy, reference)
    expected = sum(math.log(1 + math.exp(-beta * m)) for m in MARGIN) / 2
    assert loss.item() == pytest.approx(expected, abs=1e-10)
    loss.backward()
    # d/d logp of each chosen token is −β σ(−β m) / B; of each rejected one its negative; 0 outside the mask.
    pull = torch.tensor([beta / (1 + math.exp(beta * m)) / 2 for m in MARGIN], dtype=torch.float64)
    by_hand = torch.stack([-pull, pull], 1)[:, :, None] * batch.mask
    torch.testing.assert_close(policy.logps.grad, by_hand, rtol=0, atol=1e-12)


def test_metrics_by_hand(pairs):
    batch, policy, reference = pairs
    objective = DPO(0.5)
    loss = objective.loss(batch, policy, objective.targets(batch, None, reference))
    for name, expected in (("chosen", [0.5, 1.0]), ("rejected", [-0.25, -1.5]), ("margin", [0.75, 2.5])):
        assert loss.metrics[f"rewards/{name}"].tolist() == pytest.approx(expected)
    assert loss.metrics["rewards/accuracy"].tolist() == [1, 1]


def test_ln_2_when_the_policy_is_the_reference(pairs):
    batch, policy, _ = pairs
    assert evaluate_loss(DPO(3.0), batch, policy, policy.detach()).item() == pytest.approx(math.log(2), abs=1e-15)


def test_swapping_negates_the_margin(pairs):
    batch, policy, reference = pairs
    objective, swap = (
        DPO(),
        lambda outputs: dataclasses.replace(outputs, mask=outputs.mask.flip(1), logps=outputs.logps.flip(1)),
    )
    swapped = dataclasses.replace(batch, completion_ids=batch.completion_ids.flip(1), mask=batch.mask.flip(1))
    one = objective.loss(batch, policy, objective.targets(batch, None, reference))
    other = objective.loss(swapped, swap(policy), objective.targets(swapped, None, swap(reference)))
    assert torch.equal(one.metrics["rewards/margin"], -other.metrics["rewards/margin"])
    # −log σ(−m) = −log σ(m) + m
    torch.testing.assert_close(other.total, one.total + one.metrics["rewards/margin"], rtol=0, atol=1e-12)


def test_says_what_it_lacks(pairs):
    batch, policy, _ = pairs
    with pytest.raises(ValueError, match="reference="):
        evaluate_loss(DPO(), batch, policy)
    with pytest.raises(ValueError, match="2 completions of each prompt, got 1"):
        evaluate_loss(DPO(), batch.first(1), policy.first(1), policy.first(1))


def test_targets_carry_no_gradient(pairs):
    batch, policy, _ = pairs
    targets = targets_of(Term(DPO()), batch, None, policy)
    assert not targets.rows["reference"].requires_grad
