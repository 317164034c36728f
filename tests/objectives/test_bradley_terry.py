import dataclasses
import math

import pytest
import torch

from prefopt import Outputs, evaluate_loss
from prefopt.objectives import DPO, BradleyTerry
from prefopt.terms import Term, merged_needs

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
