"""Losses of unordered pairs with a probability for the winner: soft DPO and SPPO."""

import dataclasses
import math

import pytest
import torch
from trl_dpo import assert_same, random_pairs

from prefopt import evaluate_loss
from prefopt.objectives.preference.dpo import DPO
from prefopt.objectives.preference.noisy_labels import CDPO
from prefopt.objectives.preference.softdpo import SoftDPO
from prefopt.objectives.preference.sppo import SPPO


def labelled(batch, *p):
    p = torch.tensor(p, dtype=torch.float64).expand(len(batch))
    half = torch.full_like(p, 0.5)
    rows = torch.stack([torch.stack([half, p], 1), torch.stack([1 - p, half], 1)], 1)
    return dataclasses.replace(batch, preference=rows)


@pytest.mark.parametrize(("p", "same"), [(1.0, DPO(0.3)), (0.8, CDPO(0.3, 0.2))])
def test_sure_labels_are_dpo_and_smoothed_ones_conservative_dpo(p, same):
    batch, policy, reference = random_pairs()
    ours = evaluate_loss(SoftDPO(0.3), labelled(batch, p), policy, reference)
    assert_same(ours, evaluate_loss(same, batch, policy, reference), policy)


def test_soft_dpo_by_hand(pairs):
    batch, policy, reference = pairs
    loss = evaluate_loss(SoftDPO(0.5), labelled(batch, 0.9, 0.3), policy, reference)
    expected = 0
    for p, margin in ((0.9, 1.5), (0.3, 5.0)):
        win = 1 / (1 + math.exp(-0.5 * margin))
        expected -= (p * math.log(win) + (1 - p) * math.log(1 - win)) / 2
    assert loss.item() == pytest.approx(expected, rel=1e-12)
    loss.backward()
    slope = [0.5 * (1 / (1 + math.exp(-0.5 * m)) - p) / 2 for p, m in ((0.9, 1.5), (0.3, 5.0))]
    slope = torch.tensor(slope, dtype=torch.float64)
    torch.testing.assert_close(policy.logps.grad, torch.stack([slope, -slope], 1)[:, :, None] * batch.mask)


def test_sppo_by_hand(pairs):
    """Δ = (1, −.5), (2, −3); η(P − ½) = ±4, ∓2."""
    batch, policy, reference = pairs
    loss = evaluate_loss(SPPO(10.0), labelled(batch, 0.9, 0.3), policy, reference)
    assert loss.item() == pytest.approx(((1 - 4) ** 2 + (-0.5 + 4) ** 2 + (2 + 2) ** 2 + (-3 - 2) ** 2) / 4, rel=1e-12)
    loss.backward()
    slope = torch.tensor([[1 - 4, -0.5 + 4], [2 + 2, -3 - 2]], dtype=torch.float64) / 2
    torch.testing.assert_close(policy.logps.grad, slope[:, :, None] * batch.mask)


@pytest.mark.parametrize(("objective", "scale"), [(SoftDPO(0.5), 0.5), (SPPO(2.0), 0.5)], ids=repr)
def test_metrics_follow_the_label(objective, scale, pairs):
    batch, policy, reference = pairs
    batch = labelled(batch, 0.9, 0.3)
    metrics = objective.loss(batch, policy, objective.targets(batch, None, reference)).metrics
    assert metrics["rewards/chosen"].tolist() == pytest.approx([scale * 1, scale * -3])
    assert metrics["rewards/accuracy"].tolist() == [1, 0]
    tied = labelled(batch, 0.5)
    assert (
        objective.loss(tied, policy, objective.targets(tied, None, reference)).metrics["rewards/accuracy"].isnan().all()
    )


@pytest.mark.parametrize("objective", [SoftDPO(), SPPO()], ids=repr)
def test_the_order_of_a_pair_does_not_matter(objective):
    batch, policy, reference = random_pairs()
    batch = labelled(batch, 0.9, 0.3, 0.7, 0.2, 1.0)
    other = dataclasses.replace(
        batch,
        completion_ids=batch.completion_ids.flip(1),
        mask=batch.mask.flip(1),
        preference=batch.preference.flip(1, 2),
    )
    swapped = [dataclasses.replace(o, mask=o.mask.flip(1), logps=o.logps.flip(1)) for o in (policy, reference)]
    assert_same(evaluate_loss(objective, batch, policy, reference), evaluate_loss(objective, other, *swapped), policy)
