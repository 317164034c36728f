import dataclasses
import math

import pytest
import torch
from trl_dpo import assert_same, random_pairs

from prefopt import Batch, Outputs, evaluate_loss
from prefopt.objectives.contract import check_objective
from prefopt.objectives.preference.betadpo import BetaDPO
from prefopt.objectives.preference.dpo import DPO
from prefopt.types import Adaptive


def with_gaps(*gaps):
    """A batch, the policy's outputs with these gaps, and a reference of zeros."""
    mask = torch.ones(len(gaps), 2, 1, dtype=torch.bool)
    chosen = torch.tensor(gaps, dtype=torch.float64)
    logps = torch.stack([chosen, torch.zeros_like(chosen)], 1)[..., None]
    batch = Batch(((1,),) * len(gaps), mask.long(), mask)
    return batch, Outputs(mask, logps.requires_grad_()), Outputs(mask, torch.zeros_like(logps))


def test_contract():
    assert "adapts" in check_objective(BetaDPO)
    check_objective(BetaDPO(mean=0.4, std=0.2))


def test_the_averages_move_first_and_beta_follows_the_kept():
    batch, policy, reference = with_gaps(1.0, 2.0, 3.0, 6.0)
    objective = BetaDPO(0.1, 0.6, 1.0, 0.9, mean=1.0, std=2.0)
    targets = objective.targets(batch, policy.detach(), reference)
    std = math.sqrt((4 + 1 + 0 + 9) / 3)
    assert targets.metrics["gap_mean"] == pytest.approx(0.9 + 0.3)
    assert targets.metrics["gap_std"] == pytest.approx(1.8 + 0.1 * std)
    assert targets.metrics["beta"] == pytest.approx(0.1 * (1 + 0.6 * (3 - 1.2)))
    assert targets.rows["beta"].tolist() == [targets.metrics["beta"]] * 4
    assert isinstance(objective, Adaptive)
    moved = objective.adapted(dict(targets.metrics) | {"loss": 1.0})
    assert moved == dataclasses.replace(objective, mean=targets.metrics["gap_mean"], std=targets.metrics["gap_std"])


def test_the_first_batch_starts_the_averages():
    batch, policy, reference = with_gaps(1.0, 3.0)
    metrics = BetaDPO().targets(batch, policy.detach(), reference).metrics
    assert (metrics["gap_mean"], metrics["gap_std"]) == (2.0, pytest.approx(math.sqrt(2)))


def test_beta_has_a_floor():
    batch, policy, reference = with_gaps(-50.0, -50.0)
    assert BetaDPO(mean=0.0, std=1.0).targets(batch, policy.detach(), reference).metrics["beta"] == 1e-3


@pytest.mark.parametrize("gaps", [(0.0,), (0.0, 0.0, 0.0), (7.0,)])
def test_a_single_pair_and_equal_gaps_are_dpo(gaps):
    """σ = 0: nothing is unusual, and β_b = β."""
    batch, policy, reference = with_gaps(*gaps)
    objective = BetaDPO(rho=1.0)
    ours = evaluate_loss(objective, batch, policy, reference, policy.detach())
    assert_same(ours, evaluate_loss(DPO(), batch, policy, reference), policy)
    assert objective.targets(batch, policy.detach(), reference).metrics["gap_std"] == 0


def test_the_loss_is_the_mean_over_the_kept():
    batch, policy, reference = random_pairs(prompts=10)
    objective = BetaDPO(rho=0.75)
    torch.manual_seed(0)
    targets = objective.targets(batch, policy.detach(), reference)
    weight, beta = targets.rows["weight"], targets.metrics["beta"]
    kept = weight > 0
    assert kept.sum() == 7  # ⌊7.5⌋
    delta = policy.detach().sum() - reference.sum()
    gap = delta[:, 0] - delta[:, 1]
    assert beta == pytest.approx(0.1 * (1 + 0.6 * (gap[kept].mean() - gap.mean()).item()))
    index = kept.nonzero().flatten()
    same = evaluate_loss(DPO(beta), batch.rows(index), policy.rows(index), reference.rows(index))
    assert_same(objective.loss(batch, policy, targets).total.mean(), same, policy)


def test_pairs_are_drawn_in_proportion_to_their_weights():
    """One of ten: a pair at the mean, of weight 1, among nine of weight 0.3."""
    gap = math.sqrt(2 * math.log(1 / 0.3))
    batch, policy, reference = with_gaps(0.0, *[gap] * 9)
    objective = BetaDPO(rho=0.1, mean=0.0, std=1.0, momentum=1 - 1e-12)
    torch.manual_seed(0)
    draws = 1000
    weights = [objective.targets(batch, policy.detach(), reference).rows["weight"] for _ in range(draws)]
    assert torch.stack(weights).sum(1).tolist() == [10.0] * draws
    share = sum(weight[0].item() for weight in weights) / 10 / draws
    expected = 1 / (1 + 9 * 0.3)
    assert share == pytest.approx(expected, abs=3.5 * math.sqrt(expected * (1 - expected) / draws))


def test_weights_that_underflow_still_give_enough_pairs():
    batch, policy, reference = with_gaps(0.0, 1e4, 2e4, -1e4)
    weight = BetaDPO(mean=0.0, std=1e-3, momentum=0.999999).targets(batch, policy.detach(), reference).rows["weight"]
    assert (weight > 0).sum() == 3
    assert weight[2] == 0  # the furthest


def test_draws_come_from_the_global_generator():
    batch, policy, reference = random_pairs(prompts=20)
    draw = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        draw.append(BetaDPO(rho=0.5).targets(batch, policy.detach(), reference).rows["weight"])
    assert torch.equal(draw[0], draw[1])
    assert not torch.equal(draw[0], draw[2])


@pytest.mark.parametrize(("fields", "message"), [({"rho": 0}, "rho"), ({"momentum": 1}, "momentum")])
def test_refuses_values_that_make_no_sense(fields, message):
    with pytest.raises(ValueError, match=message):
        BetaDPO(**fields)
