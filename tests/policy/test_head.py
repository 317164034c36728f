import pytest
import torch
from torch import nn

from prefopt.policy import head


@pytest.mark.parametrize("grad", [False, True])
def test_no_tokens_give_no_numbers(grad):
    with torch.set_grad_enabled(grad):
        found = head.token_statistics(
            nn.Linear(4, 9), torch.zeros(0, 4), torch.zeros(0, dtype=torch.long), 9, names=["entropy"]
        )
    assert {name: list(value.shape) for name, value in found.items()} == {"logps": [0], "entropy": [0]}


@pytest.mark.parametrize(("dtype", "reduced"), [(torch.bfloat16, torch.float32), (torch.float64, torch.float64)])
def test_reduced_in_fp32_or_better(dtype, reduced):
    logits = torch.randn(3, 50, generator=torch.Generator().manual_seed(0), dtype=dtype)
    tokens = torch.tensor([1, 2, 3])
    found = head.token_statistics(nn.Identity(), logits, tokens, 50)["logps"]
    assert found.dtype == reduced
    torch.testing.assert_close(found, logits.to(reduced).log_softmax(-1)[torch.arange(3), tokens])


def test_statistics_of_known_distributions():
    uniform, certain = torch.zeros(1, 8, dtype=torch.float64), torch.tensor([[1e4] + [0.0] * 7], dtype=torch.float64)
    found = head.token_statistics(
        nn.Identity(), torch.cat([uniform, certain]), torch.zeros(2, dtype=torch.long), 8, names=head.STATISTICS
    )
    log8 = torch.tensor(8.0, dtype=torch.float64).log()
    torch.testing.assert_close(found["entropy"], torch.stack([log8, 0 * log8]))
    torch.testing.assert_close(found["log_sum_squares"], torch.stack([-log8, 0 * log8]))
