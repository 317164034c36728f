import dataclasses
import math

import pytest
import torch

from prefopt import Outputs, evaluate_loss
from prefopt.objectives import DPO, BradleyTerry, MarginBradleyTerry, SoftBradleyTerry
from prefopt.objectives.terms import Term, merged_needs

REWARDS = [[1.0, -0.5], [0.25, 2.25]]


@pytest.fixture
def outputs(pairs):
    return Outputs(pairs[0].mask, rewards=torch.tensor(REWARDS, dtype=torch.float64, requires_grad=True))


@pytest.mark.parametrize("centering", [0.0, 0.01])
def test_value_and_gradient_by_hand(centering, pairs, outputs):
    loss = evaluate_loss(BradleyTerry(centering), pairs[0], outputs)
    expected = sum(math.log(1 + math.exp(y - x)) + centering * (x + y) ** 2 for x, y in REWARDS) / 2
    assert loss.item() == pytest.approx(expected, abs=1e-12)
    loss.backward()
    by_hand = []
    for x, y in REWARDS:
        pull, centre = 1 / (1 + math.exp(x - y)), 2 * centering * (x + y)
        by_hand.append([(centre - pull) / 2, (centre + pull) / 2])
    torch.testing.assert_close(outputs.rewards.grad, torch.tensor(by_hand, dtype=torch.float64), rtol=0, atol=1e-10)


def test_a_constant_does_not_matter_and_a_swap_negates(pairs, outputs):
    objective = BradleyTerry()

    def run(rewards):
        return objective.loss(
            pairs[0], dataclasses.replace(outputs, rewards=rewards), objective.targets(pairs[0], None, None)
        )

    one, shifted, swapped = run(outputs.rewards), run(outputs.rewards + 7), run(outputs.rewards.flip(1))
    torch.testing.assert_close(one.total, shifted.total, rtol=0, atol=1e-12)
    assert torch.equal(one.metrics["rewards/margin"], -swapped.metrics["rewards/margin"])
    assert one.metrics["rewards/accuracy"].tolist() == [1, 0]
    assert run(torch.zeros(2, 2)).total.tolist() == pytest.approx([math.log(2)] * 2)


def test_needs_a_scorer(pairs):
    with pytest.raises(ValueError, match="scorer"):
        evaluate_loss(BradleyTerry(), pairs[0], pairs[1])
    with pytest.raises(ValueError, match="scorer"):
        evaluate_loss(DPO(), pairs[0], Outputs(pairs[0].mask), pairs[2])
    assert merged_needs([Term(BradleyTerry())]).rewards


def nll(x):
    return math.log(1 + math.exp(-x))


def win(x):
    return 1 / (1 + math.exp(-x))


@pytest.mark.parametrize("centering", [0.0, 0.01])
def test_margin_by_hand(centering, pairs, outputs):
    """Scores 2 and .5 ask for 3, scores 1 and 1 for nothing."""
    batch = dataclasses.replace(pairs[0], scores=torch.tensor([[2.0, 0.5], [1.0, 1.0]]))
    loss = evaluate_loss(MarginBradleyTerry(2.0, centering), batch, outputs)
    margins = (1.5 - 3, -2.0)
    by_hand = sum(nll(m) + centering * (x + y) ** 2 for m, (x, y) in zip(margins, REWARDS, strict=True)) / 2
    assert loss.item() == pytest.approx(by_hand, abs=1e-12)
    loss.backward()
    slopes = [
        [(2 * centering * (x + y) - win(-m)) / 2, (2 * centering * (x + y) + win(-m)) / 2]
        for m, (x, y) in zip(margins, REWARDS, strict=True)
    ]
    torch.testing.assert_close(outputs.rewards.grad, torch.tensor(slopes, dtype=torch.float64), rtol=0, atol=1e-12)


def test_no_margin_is_bradley_terry_and_one_more_is_asked_for_of_all_bare_preferences(pairs, outputs):
    batch = dataclasses.replace(pairs[0], scores=torch.tensor([[0.5, -0.5]] * 2))
    plain = evaluate_loss(BradleyTerry(), batch, outputs)
    torch.testing.assert_close(evaluate_loss(MarginBradleyTerry(0.0), batch, outputs), plain)
    shifted = dataclasses.replace(outputs, rewards=outputs.rewards - torch.tensor([1.0, 0.0]))
    torch.testing.assert_close(
        evaluate_loss(MarginBradleyTerry(1.0), batch, shifted), evaluate_loss(MarginBradleyTerry(2.0), batch, outputs)
    )
    metrics = MarginBradleyTerry().loss(batch, outputs, None).metrics
    assert metrics["rewards/margin"].tolist() == [1.5, -2.0], "the margin that is reached, not what is missing"


def labelled(batch, *p):
    return dataclasses.replace(batch, preference=torch.tensor([[[0.5, q], [1 - q, 0.5]] for q in p]))


@pytest.mark.parametrize("centering", [0.0, 0.01])
def test_soft_labels_by_hand(centering, pairs, outputs):
    shares, differences = (0.75, 0.25), (1.5, -2.0)
    loss = evaluate_loss(SoftBradleyTerry(centering), labelled(pairs[0], *shares), outputs)
    by_hand = 0.0
    slopes = []
    for p, d, (x, y) in zip(shares, differences, REWARDS, strict=True):
        by_hand += (p * nll(d) + (1 - p) * nll(-d) + centering * (x + y) ** 2) / 2
        pull, centre = (win(d) - p) / 2, centering * (x + y)
        slopes.append([centre + pull, centre - pull])
    assert loss.item() == pytest.approx(by_hand, abs=1e-12)
    loss.backward()
    torch.testing.assert_close(outputs.rewards.grad, torch.tensor(slopes, dtype=torch.float64), rtol=0, atol=1e-12)


def test_soft_labels_at_their_ends(pairs, outputs):
    """p = 1 is Bradley–Terry, p = 0 its swap; at logit p nothing pulls; a tie has no winner to be right about."""
    plain = evaluate_loss(BradleyTerry(), pairs[0], outputs)
    torch.testing.assert_close(evaluate_loss(SoftBradleyTerry(), labelled(pairs[0], 1.0, 1.0), outputs), plain)
    swapped = dataclasses.replace(outputs, rewards=outputs.rewards.flip(1))
    torch.testing.assert_close(evaluate_loss(SoftBradleyTerry(), labelled(pairs[0], 0.0, 0.0), swapped), plain)
    rewards = torch.tensor([[math.log(3), 0.0], [0.0, math.log(3)]], dtype=torch.float64, requires_grad=True)
    at_rest = dataclasses.replace(outputs, rewards=rewards)
    evaluate_loss(SoftBradleyTerry(), labelled(pairs[0], 0.75, 0.25), at_rest).backward()
    assert rewards.grad.abs().max() < 1e-7
    metrics = SoftBradleyTerry().loss(labelled(pairs[0], 0.2, 0.5), outputs, None).metrics
    assert metrics["rewards/chosen"][0] == -0.5 and metrics["rewards/accuracy"][0] == 0
    assert metrics["rewards/accuracy"][1].isnan()
