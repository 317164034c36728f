import pytest
import torch

from prefopt import Batch, Outputs


@pytest.fixture
def pairs():
    """Two prompts with two completions; the numbers of the tests are worked out from these by hand."""
    mask = torch.tensor([[[1, 1, 1], [1, 1, 0]], [[1, 0, 1], [1, 0, 0]]], dtype=torch.bool)
    batch = Batch(((1,), (2, 3)), torch.ones(2, 2, 3, dtype=torch.long) * mask, mask)

    def outputs(logps):
        return Outputs(mask, torch.tensor(logps, dtype=torch.float64, requires_grad=True))

    policy = outputs([[[-1.0, -2.0, -0.5], [-3.0, -1.0, 0.0]], [[-0.25, 0.0, -0.75], [-4.0, 0.0, 0.0]]])
    reference = outputs([[[-1.5, -2.0, -1.0], [-2.0, -1.5, 0.0]], [[-1.0, 0.0, -2.0], [-1.0, 0.0, 0.0]]])
    return batch, policy, reference.detach()
