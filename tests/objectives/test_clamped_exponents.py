"""Losses with e^Δ in them, χPO and f-DPO: far from the reference, in float32."""

import pytest
import torch

from prefopt import Batch, Outputs, evaluate_loss
from prefopt.objectives.contract import check_objective
from prefopt.objectives.preference.chipo import ChiPO
from prefopt.objectives.preference.fdpo import FDPO

DIVERGENCES = ["reverse_kl", "forward_kl", "js", "alpha"]


@pytest.mark.parametrize("divergence", DIVERGENCES)
@pytest.mark.parametrize("alpha", [-1.0, 0.5, 3.0])
def test_contract(divergence, alpha):
    assert "extremes" in check_objective(FDPO(0.1, divergence, alpha))


@pytest.mark.parametrize("objective", [*(FDPO(0.1, name, 3.0) for name in DIVERGENCES), ChiPO()], ids=repr)
@pytest.mark.parametrize("size", [15.0, 39.0, 1e4])
def test_the_norm_of_the_gradient_is_finite(objective, size):
    mask = torch.ones(4, 2, 3, dtype=torch.bool)
    signs = torch.tensor([[1.0, 1], [1, -1], [-1, 1], [-1, -1]])[..., None].expand(4, 2, 3)
    logps = (size * signs / 3).clone().requires_grad_()
    batch = Batch(((1,),) * 4, mask.long(), mask)
    evaluate_loss(objective, batch, Outputs(mask, logps), Outputs(mask, torch.zeros_like(logps))).backward()
    assert logps.grad.norm().isfinite()


def test_chipo_stops_at_its_bound():
    """φ(1) − φ(e^Δ_l) at Δ_l = −40 is 41; β 41 > 2R."""
    mask = torch.ones(1, 2, 1, dtype=torch.bool)
    logps = torch.tensor([[[0.0], [-40.0]]], requires_grad=True)
    batch, reference = Batch(((1,),), mask.long(), mask), Outputs(mask, torch.zeros(1, 2, 1))
    for bound, moves in ((2.0, False), (2.1, True)):
        loss = evaluate_loss(ChiPO(0.1, bound), batch, Outputs(mask, logps), reference)
        expected = torch.nn.functional.softplus(torch.tensor(-4.1 if moves else -4.0))
        torch.testing.assert_close(loss, expected)
        assert (torch.autograd.grad(loss, logps)[0].abs().max() > 0) == moves
