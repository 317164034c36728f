"""Rewards of steps: process labels, and Bradley–Terry on the sums of segments."""

import dataclasses
import math

import pytest
import torch
from torch.nn.functional import cross_entropy

from prefopt import Batch, Outputs, evaluate_loss
from prefopt.objectives.contract import make_case
from prefopt.objectives.reward.bradley_terry import BradleyTerry, SegmentBradleyTerry
from prefopt.objectives.reward.steps import StepReward
from prefopt.objectives.terms import Term, merged_needs
from prefopt.support.errors import PrefoptError
from prefopt.types import Targets

MASK = torch.tensor([[[1, 1, 0, 1, 1, 0, 1], [1, 0, 0, 1, 1, 1, 0]]], dtype=torch.bool)
"""A pair of episodes: turns that end at 1, 4 and 6, and at 0 and 5; the environment speaks in between."""


def segments(numbers, mask=MASK, **columns):
    """Step rewards with gradient, and the batch; what is no step's end has numbers that must not count."""
    values = torch.full(mask.shape, 100.0, dtype=torch.float64)
    batch = Batch(((1,),) * len(mask), mask.long(), mask, columns=columns)
    values[batch.step_ends] = torch.tensor(numbers, dtype=torch.float64)
    values.requires_grad_()
    return batch, Outputs(mask, rewards=torch.zeros(mask.shape[:2]), step_rewards=values)


def test_segments_by_hand():
    batch, policy = segments([0.5, -1.0, 2.0, 0.25, 0.5])
    loss = evaluate_loss(SegmentBradleyTerry(), batch, policy)
    assert loss.item() == pytest.approx(math.log(1 + math.exp(-(1.5 - 0.75))), rel=1e-12)
    loss.backward()
    pull = 1 / (1 + math.exp(0.75))
    assert policy.step_rewards.grad[batch.step_ends].tolist() == pytest.approx([-pull] * 3 + [pull] * 2, rel=1e-12)
    assert not policy.step_rewards.grad[~batch.step_ends].any()
    centred = evaluate_loss(SegmentBradleyTerry(0.1), batch, policy)
    assert centred.item() - loss.item() == pytest.approx(0.1 * (1.5 + 0.75) ** 2, rel=1e-12)


@pytest.mark.parametrize("centering", [0.0, 0.1])
def test_with_one_step_each_it_is_bradley_terry(centering):
    mask = torch.tensor([[[1, 1, 1], [1, 1, 0]], [[1, 0, 0], [1, 1, 1]]], dtype=torch.bool)
    batch, policy = segments([0.5, -1.0, 2.0, 0.25], mask)
    whole = Outputs(mask, rewards=torch.tensor([[0.5, -1.0], [2.0, 0.25]], dtype=torch.float64))
    found, expected = (
        cls(centering).loss(batch, outputs, Targets())
        for cls, outputs in ((SegmentBradleyTerry, policy), (BradleyTerry, whole))
    )
    torch.testing.assert_close(found.total, expected.total, rtol=1e-12, atol=0)
    assert found.metrics["rewards/accuracy"].tolist() == expected.metrics["rewards/accuracy"].tolist()


def test_the_reward_of_each_step_is_found_from_comparisons_of_sums():
    """Rewards of ten kinds of steps, up to the constant that sums of equally many cannot tell, from 700 noiseless comparisons."""
    draw = torch.Generator().manual_seed(0)
    true = torch.randn(10, generator=draw, dtype=torch.float64)
    kinds = torch.randint(0, 10, (700, 2, 4), generator=draw)
    order = true[kinds].sum(-1).argsort(1, descending=True)
    kinds = kinds.gather(1, order[..., None].expand_as(kinds))
    learnt = torch.zeros(10, dtype=torch.float64, requires_grad=True)
    mask = torch.ones(700, 2, 4, dtype=torch.bool)
    batch = Batch(((1,),) * 700, kinds, mask, columns={"step_ends": mask})
    optimiser = torch.optim.LBFGS([learnt], max_iter=60)

    def closure():
        optimiser.zero_grad()
        outputs = Outputs(mask, rewards=learnt[kinds].sum(-1), step_rewards=learnt[kinds])
        loss = evaluate_loss(SegmentBradleyTerry(0.0), batch, outputs) + 1e-4 * learnt.square().sum()
        loss.backward()
        return loss

    optimiser.step(closure)
    assert torch.corrcoef(torch.stack([learnt.detach(), true]))[0, 1] > 0.99


def labelled(seed=0):
    draw = torch.Generator().manual_seed(seed)
    mask = torch.rand(3, 2, 9, generator=draw) < 0.7
    ends = mask & (torch.rand(mask.shape, generator=draw) < 0.5)
    labels = (torch.rand(mask.shape, generator=draw) < 0.5).double()
    two = torch.randn(*mask.shape, 2, generator=draw, dtype=torch.float64)
    batch = Batch(((1,),) * 3, mask.long(), mask, columns={"step_ends": ends, "step_labels": labels})
    logits = (two[..., 1] - two[..., 0]).detach().requires_grad_()
    return batch, two, Outputs(mask, rewards=torch.zeros(3, 2), step_rewards=logits)


def test_it_is_the_token_classification_of_trls_prm_trainer():
    """Two logits for each token, labels of −100 where no step ends, the mean over all labels of the batch."""
    batch, two, policy = labelled()
    labels = batch.columns["step_labels"].long().masked_fill(~batch.step_ends, -100)
    expected = cross_entropy(two.flatten(0, 2), labels.flatten(), ignore_index=-100)
    assert evaluate_loss(StepReward(), batch, policy).item() == pytest.approx(expected.item(), rel=1e-12)


def test_labels_by_hand_with_a_probability_among_them():
    batch, policy = segments([0.5, -1.0, 2.0, 0.25, 0.5], step_labels=torch.zeros(MASK.shape, dtype=torch.float64))
    batch.columns["step_labels"][batch.step_ends] = torch.tensor([1.0, 0.0, 0.75, 0.0, 1.0], dtype=torch.float64)

    def nll(z, y):
        return y * math.log(1 + math.exp(-z)) + (1 - y) * math.log(1 + math.exp(z))

    pairs = [(0.5, 1), (-1.0, 0), (2.0, 0.75), (0.25, 0), (0.5, 1)]
    loss = evaluate_loss(StepReward(), batch, policy)
    assert loss.item() == pytest.approx(sum(nll(*pair) for pair in pairs) / 5, rel=1e-12)
    loss.backward()
    slopes = [(1 / (1 + math.exp(-z)) - y) / 5 for z, y in pairs]
    assert policy.step_rewards.grad[batch.step_ends].tolist() == pytest.approx(slopes, rel=1e-12)
    assert not policy.step_rewards.grad[~batch.step_ends].any()


def test_every_step_weighs_alike_however_the_batch_is_cut():
    batch, _, policy = labelled()
    whole = evaluate_loss(StepReward(), batch, policy)
    parts = [
        StepReward().loss(batch.rows(slice(b, b + 1)), policy.rows(slice(b, b + 1)), Targets()).total for b in range(3)
    ]
    assert sum(part.item() for part in parts) / int(batch.step_ends.sum()) == pytest.approx(whole.item(), rel=1e-12)


def test_accuracies_of_steps_and_of_whole_completions():
    """Three steps, of which the second is called right and is wrong; two, both called as they are; and a prompt without steps."""
    columns = {"step_labels": torch.zeros(MASK.shape, dtype=torch.float64)}
    batch, policy = segments([0.5, 1.0, -2.0, 0.25, 0.5], **columns)
    batch.columns["step_labels"][batch.step_ends] = torch.tensor([1.0, 0.0, 0.0, 1.0, 1.0], dtype=torch.float64)
    metrics = StepReward().loss(batch, policy, Targets()).metrics
    assert {name: value.item() for name, value in metrics.items()} == pytest.approx(
        {
            "steps/accuracy": 4 / 5,
            "steps/accuracy_right": 1.0,
            "steps/accuracy_wrong": 1 / 2,
            "steps/accuracy_whole": 1.0,
        }
    )
    none = {"step_ends": torch.zeros_like(MASK), **columns}
    empty = StepReward().loss(dataclasses.replace(batch, columns=none), policy, Targets())
    assert empty.total.item() == 0 and all(value.isnan().all() for value in empty.metrics.values())


def test_one_scorer_gives_rewards_or_log_odds():
    with pytest.raises(PrefoptError, match="train two"):
        merged_needs([Term(StepReward(), "a"), Term(SegmentBradleyTerry(), "b")])
    assert merged_needs([Term(StepReward(), "a"), Term(BradleyTerry(), "b")]).step_rewards == "logit"


@pytest.mark.parametrize("objective", [StepReward(), SegmentBradleyTerry()], ids=repr)
def test_outputs_without_step_rewards_are_refused(objective):
    case = make_case(objective)
    with pytest.raises(ValueError, match="a scorer of steps"):
        evaluate_loss(objective, case.batch, dataclasses.replace(case.policy, step_rewards=None))
