"""Losses of labelled completions, and those that compare distributions of log-ratios: KTO, BCO, AOT."""

import dataclasses
import math

import pytest
import torch

from prefopt import Batch, Outputs, evaluate_loss
from prefopt.objectives.preference.aot import AOT, AOTUnpaired
from prefopt.objectives.preference.bco import BCO
from prefopt.objectives.preference.kto import KTO
from prefopt.types import ORIGINS, Targets


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def scored(batch, scores=(0.5, -0.5)):
    return dataclasses.replace(batch, scores=torch.tensor(scores, dtype=torch.float64).expand(len(batch), -1))


def labels(batch, *label):
    """The first completion has the label; the second is another prompt's."""
    scores = torch.stack([torch.tensor(label, dtype=torch.float64), torch.zeros(len(batch), dtype=torch.float64)], 1)
    origin = torch.tensor([0, ORIGINS.index("mismatched")]).expand(len(batch), 2)
    return dataclasses.replace(batch, scores=scores, columns={"origin": origin})


def with_log_ratios(rows):
    """One token a completion, and a reference that says 0."""
    delta = torch.tensor(rows, dtype=torch.float64)[:, :, None]
    mask = torch.ones(delta.shape, dtype=torch.bool)
    batch = Batch(((1,),) * len(rows), torch.ones(delta.shape, dtype=torch.long), mask)
    return batch, Outputs(mask, delta.requires_grad_()), Outputs(mask, torch.zeros_like(delta))


def gradient(loss, policy):
    return torch.autograd.grad(loss, policy.logps)[0][:, :, 0]


def test_kto_by_hand():
    """z0 = mean(.5, 2.5) = 1.5; it is without gradient, so the mismatched completions have none."""
    batch, policy, reference = with_log_ratios([[1.0, 0.5], [-2.0, 2.5]])
    loss = evaluate_loss(KTO(0.4, lam_d=2.0), labels(batch, 1, -1), policy, reference)
    good, bad = sigmoid(0.4 * (1.5 - 1)), sigmoid(0.4 * (-2 - 1.5))
    assert loss.item() == pytest.approx((2 * good + bad) / 2, rel=1e-12)
    by_hand = [[-2 * 0.4 * good * (1 - good) / 2, 0], [0.4 * bad * (1 - bad) / 2, 0]]
    torch.testing.assert_close(gradient(loss, policy), torch.tensor(by_hand, dtype=torch.float64))


def test_kto_never_takes_a_negative_z0_and_does_without_mismatched_completions():
    batch, policy, reference = with_log_ratios([[1.0, -0.5], [-2.0, -2.5]])
    batch = labels(batch, 1, -1)
    alone = dataclasses.replace(
        batch,
        columns={"origin": torch.zeros(2, 2, dtype=torch.long)},
        mask=batch.mask & torch.tensor([[[True], [False]]]),
    )
    for case in (batch, alone):
        loss = evaluate_loss(KTO(0.4), case, policy, reference)
        assert loss.item() == pytest.approx((sigmoid(-0.4) + sigmoid(-0.8)) / 2, rel=1e-12)


def test_bco_by_hand_and_its_delta_is_the_mean_of_all_rewards_so_far():
    batch, policy, reference = with_log_ratios([[1.0, -0.5], [2.0, -3.0]])
    batch = scored(batch)
    delta = 0.5 * (1 - 0.5 + 2 - 3) / 4
    objective = BCO(0.5)
    loss = objective.loss(batch, policy, objective.targets(batch, None, reference))
    rows = [
        -math.log(sigmoid(0.5 * good - delta)) - math.log(sigmoid(delta - 0.5 * bad))
        for good, bad in ((1.0, -0.5), (2.0, -3.0))
    ]
    assert loss.total.tolist() == pytest.approx(rows, rel=1e-12)
    slope = [
        [-0.5 * sigmoid(delta - 0.5 * good), 0.5 * sigmoid(0.5 * bad - delta)]
        for good, bad in ((1.0, -0.5), (2.0, -3.0))
    ]
    torch.testing.assert_close(gradient(loss.total.sum(), policy), torch.tensor(slope, dtype=torch.float64))

    moved = objective.adapted({name: value.mean().item() for name, value in loss.metrics.items()})
    assert (moved.delta, moved.seen) == (pytest.approx(delta), 4)
    batch, policy, reference = with_log_ratios([[4.0, 6.0]])
    second = moved.loss(scored(batch), policy, moved.targets(batch, None, reference))
    assert second.metrics["delta"].item() == pytest.approx((4 * delta + 2 + 3) / 6)
    assert second.metrics["seen"].item() == 6


@pytest.mark.parametrize("objective", [BCO(), AOTUnpaired()], ids=repr)
def test_single_labelled_completions_are_as_good_as_pairs(objective):
    rows = [[1.0, -0.5], [2.0, -3.0], [0.3, 0.7]]
    batch, policy, reference = with_log_ratios(rows)
    paired = objective.loss(scored(batch), policy, objective.targets(batch, None, reference)).total
    batch, policy, reference = with_log_ratios([[delta] for row in rows for delta in row])
    batch = dataclasses.replace(batch, scores=torch.tensor([[1.0], [-1.0]] * 3))
    single = objective.loss(batch, policy, objective.targets(batch, None, reference)).total
    scale = 2 if isinstance(objective, AOTUnpaired) else 1  # a mean over six rows, of which three have a term
    torch.testing.assert_close(single.sum() / scale, paired.sum())


def test_aot_by_hand():
    """Margins 3, 1 and reference margins 0, 0.5: sorted 1 − 0 and 3 − .5."""
    mask = torch.ones(2, 2, 1, dtype=torch.bool)
    batch = Batch(((1,), (2,)), torch.ones(2, 2, 1, dtype=torch.long), mask)
    policy = Outputs(mask, torch.tensor([[[2.0], [-1.0]], [[0.0], [-1.0]]], dtype=torch.float64))
    reference = torch.tensor([[0.0, 0.0], [1.0, 0.5]], dtype=torch.float64)
    total = AOT(0.5).loss(batch, policy, Targets({"reference": reference})).total
    assert total.tolist() == pytest.approx([-math.log(sigmoid(0.5 * 2.5)), -math.log(sigmoid(0.5 * 1))])


def test_unequal_numbers_meet_at_quantiles():
    """Three good ones at (s − ½)/3 of two bad ones: the ends, and half-way."""
    batch, policy, reference = with_log_ratios([[1.0], [3.0], [2.0], [0.0], [4.0]])
    batch = dataclasses.replace(batch, scores=torch.tensor([[1.0], [1.0], [1.0], [-1.0], [-1.0]]))
    total = AOTUnpaired(1.0).loss(batch, policy, AOTUnpaired.targets(None, batch, None, reference)).total
    expected = [-math.log(sigmoid(x)) * 5 / 3 for x in (1 - 0, 3 - 4, 2 - 2)]
    assert total.tolist() == pytest.approx([*expected, 0, 0])
