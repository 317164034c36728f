"""The losses that count tokens: R-DPO and LD-DPO."""

import math

import pytest
import torch

from prefopt import evaluate_loss
from prefopt.objectives.preference.lddpo import LDDPO
from prefopt.objectives.preference.rdpo import RDPO

# Tokens: (3, 2) and (2, 1), the second prompt's chosen with a hole. Δ = (1, −.5), (2, −3): h = 1.5, 5.


def test_rdpo_by_hand(pairs):
    batch, policy, reference = pairs
    loss = evaluate_loss(RDPO(0.5, 0.2), batch, policy, reference)
    logits = [0.5 * 1.5 + 0.2, 0.5 * 5 + 0.2]  # one token more, each
    assert loss.item() == pytest.approx(sum(math.log(1 + math.exp(-x)) for x in logits) / 2, rel=1e-12)
    loss.backward()
    pull = torch.tensor([0.5 / (1 + math.exp(x)) / 2 for x in logits], dtype=torch.float64)
    by_hand = torch.stack([-pull, pull], 1)[:, :, None] * batch.mask
    torch.testing.assert_close(policy.logps.grad, by_hand, rtol=0, atol=1e-12)


def test_rdpo_pulls_less_when_the_chosen_is_longer(pairs):
    batch, policy, reference = pairs

    def pull(alpha):
        return torch.autograd.grad(evaluate_loss(RDPO(0.5, alpha), batch, policy, reference), policy.logps)[0][:, 0, 0]

    assert (pull(1.0) > pull(0.0)).all()


def test_lddpo_by_hand(pairs):
    """The excess is the chosen's third token in the first row; in the second, behind the hole, the third place but second token."""
    batch, policy, reference = pairs
    objective = LDDPO(0.5, 0.25)
    weights = objective.targets(batch, None, reference).rows["weights"]
    assert weights.tolist() == [[[1, 1, 0.25], [1, 1, 0]], [[1, 0, 0.25], [1, 0, 0]]]
    # log-ratios of the chosen's tokens: (.5, 0, .5) and (.75, ·, 1.25); sums of the rejected's: −.5 and −3
    margins = [0.5 + 0.25 * 0.5 + 0.5, 0.75 + 0.25 * 1.25 + 3]
    loss = evaluate_loss(objective, batch, policy, reference)
    assert loss.item() == pytest.approx(sum(math.log(1 + math.exp(-0.5 * m)) for m in margins) / 2, rel=1e-12)
    loss.backward()
    pull = torch.tensor([0.5 / (1 + math.exp(0.5 * m)) / 2 for m in margins], dtype=torch.float64)
    by_hand = torch.stack([-pull, pull], 1)[:, :, None] * weights
    torch.testing.assert_close(policy.logps.grad, by_hand, rtol=0, atol=1e-12)


def test_lddpo_counts_the_excess_on_either_side(pairs):
    batch, _, reference = pairs
    swapped = type(batch)(batch.prompt_ids, batch.completion_ids.flip(1), batch.mask.flip(1))
    flipped = type(reference)(reference.mask.flip(1), reference.logps.flip(1))
    weights = LDDPO().targets(swapped, None, flipped).rows["weights"]
    assert torch.equal(weights, LDDPO().targets(batch, None, reference).rows["weights"].flip(1))
