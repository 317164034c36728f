import pytest
import torch
from torch import nn

from prefopt.errors import PrefoptError
from prefopt.policy import head


@pytest.mark.parametrize("grad", [False, True])
def test_no_tokens_give_no_numbers(grad):
    with torch.set_grad_enabled(grad):
        states = head.States(nn.Linear(4, 9), torch.zeros(0, 4), 9)
        found = head.token_statistics(states, torch.zeros(0, dtype=torch.long), names=["entropy"])
    assert {name: list(value.shape) for name, value in found.items()} == {"logps": [0], "entropy": [0]}


@pytest.mark.parametrize(("dtype", "reduced"), [(torch.bfloat16, torch.float32), (torch.float64, torch.float64)])
def test_reduced_in_fp32_or_better(dtype, reduced):
    logits = torch.randn(3, 50, generator=torch.Generator().manual_seed(0), dtype=dtype)
    tokens = torch.tensor([1, 2, 3])
    found = head.token_statistics(head.States(nn.Identity(), logits, 50), tokens)["logps"]
    assert found.dtype == reduced
    torch.testing.assert_close(found, logits.to(reduced).log_softmax(-1)[torch.arange(3), tokens])


def test_statistics_of_known_distributions():
    uniform, certain = torch.zeros(1, 8, dtype=torch.float64), torch.tensor([[1e4] + [0.0] * 7], dtype=torch.float64)
    states = head.States(nn.Identity(), torch.cat([uniform, certain]), 8)
    found = head.token_statistics(states, torch.zeros(2, dtype=torch.long), names=head.STATISTICS)
    log8 = torch.tensor(8.0, dtype=torch.float64).log()
    torch.testing.assert_close(found["entropy"], torch.stack([log8, 0 * log8]))
    torch.testing.assert_close(found["log_sum_squares"], torch.stack([-log8, 0 * log8]))


def test_divergences_of_known_distributions():
    policy = torch.tensor([[0.5, 0.25, 0.25], [0.2, 0.3, 0.5]], dtype=torch.float64).log().requires_grad_()
    reference = torch.tensor([[0.25, 0.5, 0.25], [0.2, 0.3, 0.5]], dtype=torch.float64).log()
    states, beside = (head.States(nn.Identity(), logits, 3) for logits in (policy, reference))
    found = head.token_statistics(states, torch.tensor([0, 0]), names=head.DIVERGENCES, reference=beside)
    ln2 = torch.tensor(2.0, dtype=torch.float64).log()
    expected = torch.stack([0.25 * ln2, 0 * ln2])  # ½ ln 2 − ¼ ln 2, either way round
    torch.testing.assert_close(found["kl_policy_ref"], expected)
    torch.testing.assert_close(found["kl_ref_policy"], expected)
    found["kl_ref_policy"].sum().backward()  # ∂KL(ref‖π)/∂logits = π − ref
    torch.testing.assert_close(policy.grad, policy.detach().exp() - reference.exp())


def test_divergence_needs_one_vocabulary():
    states, beside = (head.States(nn.Identity(), torch.zeros(1, v), v) for v in (3, 4))
    with pytest.raises(PrefoptError, match="policy's LM head has 3 rows, the reference's 4"):
        head.token_statistics(states, torch.tensor([0]), names=["kl_ref_policy"], reference=beside)
