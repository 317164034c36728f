import dataclasses
import math

import pytest
import torch
from trl_dpo import assert_same

from prefopt import evaluate_loss
from prefopt.objectives.preference.tdpo import TDPO1, TDPO2

# h = 1.5, 5. K = (.7, .3), (.5, .2): K_l − K_w = −.4, −.3.
KL = [[[0.1, 0.2, 0.4], [0.1, 0.2, 9.0]], [[0.2, 9.0, 0.3], [0.2, 9.0, 9.0]]]
MARGINS = {TDPO1(0.5): [1.9, 5.3], TDPO2(0.5, 0.25): [1.6, 5.075], TDPO2(0.5, 1.0): [1.9, 5.3]}


@pytest.fixture
def inputs(pairs):
    batch, policy, reference = pairs
    kl = torch.tensor(KL, dtype=torch.float64, requires_grad=True)
    return batch, dataclasses.replace(policy, statistics={"kl_ref_policy": kl}), reference


@pytest.mark.parametrize("objective", MARGINS, ids=repr)
def test_value_and_gradient_by_hand(objective, inputs):
    batch, policy, reference = inputs
    margins = MARGINS[objective]
    loss = evaluate_loss(objective, batch, policy, reference)
    assert loss.item() == pytest.approx(sum(math.log(1 + math.exp(-0.5 * m)) for m in margins) / 2, rel=1e-12)
    loss.backward()
    pull = torch.tensor([0.5 / (1 + math.exp(0.5 * m)) / 2 for m in margins], dtype=torch.float64)
    mask = batch.mask.double()
    torch.testing.assert_close(policy.logps.grad, torch.stack([-pull, pull], 1)[:, :, None] * mask)
    if isinstance(objective, TDPO1):
        by_hand = torch.stack([-pull, pull], 1)[:, :, None] * mask
    else:  # sg: nothing on the chosen side
        by_hand = objective.alpha * torch.stack([0 * pull, pull], 1)[:, :, None] * mask
    torch.testing.assert_close(policy.statistics["kl_ref_policy"].grad, by_hand)


def test_the_forms_differ_in_the_gradient_alone(inputs):
    batch, policy, reference = inputs
    one, two = (evaluate_loss(objective, batch, policy, reference) for objective in (TDPO1(), TDPO2(alpha=1.0)))
    assert_same(one, two, policy)
    kl = policy.statistics["kl_ref_policy"]
    assert torch.autograd.grad(one, kl)[0][:, 0].abs().sum() > 0
    assert torch.autograd.grad(two, kl)[0][:, 0].abs().sum() == 0
