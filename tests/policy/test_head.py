import pytest
import torch
import transformers
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AutoModelForCausalLM

from prefopt.policy import head
from prefopt.support.errors import PrefoptError


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


@pytest.fixture
def make_head(tiny):
    """A head on 16 hidden numbers and a vocabulary of 40; Phi's has a bias, Llama's none."""

    def make(bias=False, trained=True):
        torch.manual_seed(0)
        cls = transformers.PhiConfig if bias else transformers.LlamaConfig
        model = AutoModelForCausalLM.from_config(cls(**tiny | {"vocab_size": 40})).double()
        if bias:
            torch.nn.init.normal_(model.lm_head.bias)
        model.config.logit_scale = 0.7
        model.lm_head.requires_grad_(trained)
        return head.Head(model)

    return make


@pytest.mark.parametrize("rows", [3, 100], ids=["chunks", "kept"])
@pytest.mark.parametrize("frozen", [False, True], ids=["trained", "frozen"])
@pytest.mark.parametrize("bias", [False, True], ids=["", "bias"])
def test_the_written_out_gradient(bias, frozen, rows, make_head, monkeypatch):
    monkeypatch.setattr(head, "CHUNK_ELEMENTS", rows * 40)
    own, draw = make_head(bias, not frozen), torch.Generator().manual_seed(0)
    hidden = torch.randn(10, 16, generator=draw, dtype=torch.float64, requires_grad=True)
    tokens, weights = torch.randint(40, (10,), generator=draw), torch.randn(10, generator=draw, dtype=torch.float64)
    temperature = torch.linspace(0.5, 2, 10)
    parameters = [hidden, *(() if frozen else own.linear.parameters())]

    def gradients(logps):
        return torch.autograd.grad((logps * weights).sum(), parameters)

    states = head.States(own, hidden, 40)
    found = head.token_statistics(states, tokens, temperature)["logps"]
    scores = 0.7 * own.linear(hidden) / temperature.double()[:, None]
    expected = scores.log_softmax(-1)[torch.arange(10), tokens]
    torch.testing.assert_close(found, expected)
    for a, b in zip(gradients(found), gradients(expected), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("names", [(), ("log_sum_squares",)], ids=["linear", "any"])
@pytest.mark.parametrize("frozen", [False, True], ids=["trained", "frozen"])
def test_what_is_watched_has_no_gradient_and_takes_none(frozen, names, make_head):
    own, draw = make_head(trained=not frozen), torch.Generator().manual_seed(0)
    hidden = torch.randn(10, 16, generator=draw, dtype=torch.float64, requires_grad=True)
    tokens, states = torch.randint(40, (10,), generator=draw), head.States(own, hidden, 40)
    found = head.token_statistics(states, tokens, names=names, watched=["entropy"])
    scores = (0.7 * own.linear(hidden)).log_softmax(-1)
    torch.testing.assert_close(found["entropy"], -(scores.exp() * scores).sum(-1).detach())
    assert not found["entropy"].requires_grad
    assert found.keys() == {"logps", "entropy", *names}
    (gradient,) = torch.autograd.grad(found["logps"].sum(), hidden)
    (expected,) = torch.autograd.grad(scores[torch.arange(10), tokens].sum(), hidden)
    torch.testing.assert_close(gradient, expected)


class Largest(TorchDispatchMode):
    """The most numbers that any tensor had that was made meanwhile, but for gradients of these shapes."""

    def __init__(self, *besides):
        super().__init__()
        self.numbers, self.besides = 0, besides

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        output = func(*args, **kwargs or {})
        made = [one for one in tree_leaves(output) if isinstance(one, torch.Tensor) and one.shape not in self.besides]
        self.numbers = max([self.numbers, *(tensor.numel() for tensor in made)])
        return output


@pytest.mark.parametrize("names", [(), ("kl_policy_ref",), ("kl_ref_policy", "entropy", "log_sum_squares")])
@pytest.mark.parametrize("frozen", [False, True], ids=["trained", "frozen"])
def test_no_more_than_a_chunk_of_logits_is_there_at_a_time(frozen, names, make_head, monkeypatch):
    """With exact divergences and statistics too, and in both passes; for the backward pass none is kept."""
    monkeypatch.setattr(head, "CHUNK_ELEMENTS", 4 * 40)
    own, other, kept = make_head(trained=not frozen), make_head(trained=False), []
    weight = own.linear.weight
    hidden, theirs = (torch.randn(50, 4, dtype=torch.float64) @ torch.randn(4, 16, dtype=torch.float64) for _ in "12")
    states = head.States(own, hidden.requires_grad_(), 40)
    beside = head.States(other, theirs, 40) if names else None

    def pack(tensor):
        kept.append((*tensor.shape,))
        return tensor

    with Largest(weight.shape, weight.mT.shape, hidden.shape) as made:
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            found = head.token_statistics(states, torch.zeros(50, dtype=torch.long), None, names, beside)
        torch.stack(list(found.values())).sum().backward()
    assert hidden.grad is not None
    assert 0 < made.numbers <= max(head.CHUNK_ELEMENTS, 50 * (1 + len(names)))
    assert not [shape for shape in kept if 40 in shape and shape != weight.shape]


@pytest.mark.parametrize("frozen", [False, True], ids=["trained", "frozen"])
def test_memory_does_not_grow_with_vocabulary_times_tokens(frozen, make_head, monkeypatch):
    """What is kept for the backward pass is linear in the tokens, not tokens × vocabulary."""
    monkeypatch.setattr(head, "CHUNK_ELEMENTS", 4 * 40)
    own, kept = make_head(trained=not frozen), []

    def pack(tensor):
        kept.append(0 if tensor is own.linear.weight else tensor.numel())
        return tensor

    hidden = torch.randn(500, 16, dtype=torch.float64, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        states = head.States(own, hidden, 40)
        logps = head.token_statistics(states, torch.zeros(500, dtype=torch.long))["logps"]
    assert sum(kept) <= 500 * 16 + 3 * 500
    assert getattr(logps.grad_fn, "scores", None) is None  # a chunk that is the only one may stay, others not
    logps.sum().backward()
    assert hidden.grad is not None
