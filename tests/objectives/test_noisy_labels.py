import math

import pytest
import torch
from trl_dpo import random_pairs

from prefopt import evaluate_loss
from prefopt.objectives.preference.dpo import DPO
from prefopt.objectives.preference.noisy_labels import CDPO, RobustDPO


def losses(objective, policy, reference, batch):
    """[B, 2]: each pair's loss, as labelled and with the label flipped."""
    totals = []
    for flip in (lambda x: x, lambda x: x.flip(1)):
        seen, old, ours = (
            type(record)(
                **{**vars(record), **{n: flip(v) for n, v in vars(record).items() if isinstance(v, torch.Tensor)}}
            )
            for record in (batch, reference, policy)
        )
        totals.append(objective.loss(seen, ours, objective.targets(seen, None, old)).total)
    return torch.stack(totals, 1)


@pytest.mark.parametrize("epsilon", [0.05, 0.3])
def test_robust_dpo_is_unbiased_under_flips(epsilon):
    batch, policy, reference = random_pairs(scale=4.0)
    weights = torch.tensor([1 - epsilon, epsilon], dtype=torch.float64)
    mean = losses(RobustDPO(0.5, epsilon), policy, reference, batch) @ weights
    torch.testing.assert_close(mean, losses(DPO(0.5), policy, reference, batch)[:, 0], rtol=1e-12, atol=1e-12)
    conservative = losses(CDPO(0.5, epsilon), policy, reference, batch) @ weights
    assert (conservative - mean).abs().min() > 1e-3


def test_conservative_dpo_is_least_at_the_label_noise(pairs):
    """At βh = logit(1 − ε), where the loss is the label's entropy."""
    batch, policy, _ = pairs
    objective, best = CDPO(0.5, 0.1), math.log(9) / 0.5
    reference = policy.detach()
    shift = torch.zeros_like(policy.logps)
    shift[:, 0, 0] = best
    moved = type(policy)(policy.mask, (policy.logps + shift).detach().requires_grad_())
    loss = evaluate_loss(objective, batch, moved, reference)
    assert loss.item() == pytest.approx(-0.9 * math.log(0.9) - 0.1 * math.log(0.1), rel=1e-12)
    loss.backward()
    assert moved.logps.grad.abs().max() < 1e-15


def test_robust_dpo_falls_without_bound(pairs):
    batch, policy, _ = pairs
    far = type(policy)(policy.mask, policy.logps + 1e4 * torch.tensor([1.0, 0.0])[None, :, None])
    loss = evaluate_loss(RobustDPO(0.1, 0.1), batch, far, policy.detach())
    tokens = policy.mask[:, 0].sum() / 2
    assert loss.item() == pytest.approx(-0.1 * 0.1 * 1e4 * tokens.item() / 0.8, rel=1e-6)
