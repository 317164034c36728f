import pytest
import torch

from prefopt import Batch, Outputs
from prefopt.objectives.preference.discopop import DiscoPOP


def curve(objective, margins):
    """Loss and slope at these values of h, [N]."""
    mask = torch.ones(len(margins), 2, 1, dtype=torch.bool)
    logps = torch.stack([margins, torch.zeros_like(margins)], 1)[..., None].requires_grad_()
    batch, reference = Batch(((1,),) * len(margins), mask.long(), mask), Outputs(mask, torch.zeros_like(logps))
    total = objective.loss(batch, Outputs(mask, logps), objective.targets(batch, None, reference)).total
    return total.detach(), torch.autograd.grad(total.sum(), logps)[0][:, 0, 0]


def test_falls_and_rises_where_the_paper_says():
    """Local minimum f(−2.3714) = 0.785 and maximum f(1.44012) = 0.87829, over u/τ at τ = 0.05."""
    total, slope = curve(DiscoPOP(0.05, 0.05), torch.tensor([-2.3714, 1.44012], dtype=torch.float64))
    assert total.tolist() == pytest.approx([0.785, 0.87829], abs=1e-3)
    assert slope.abs().max() < 1e-5
    _, slope = curve(DiscoPOP(0.05, 0.05), torch.tensor([-4.0, -2.0, 0.0, 1.2, 1.7], dtype=torch.float64))
    assert slope.sign().tolist() == [-1, 1, 1, 1, -1]


def test_is_logistic_on_one_side_and_exponential_on_the_other():
    margins = torch.tensor([-2e4, -100.0, 100.0, 2e4])
    total, slope = curve(DiscoPOP(0.05, 0.05), margins)
    assert total.tolist() == pytest.approx([1000, 5.0067153, 6.737947e-3, 0], rel=1e-6)
    assert slope.isfinite().all()
