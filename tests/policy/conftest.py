import pytest
import torch
from torch import nn
from torch.nn.attention import flex_attention
from transformers import AutoModelForCausalLM, LlamaConfig

from prefopt.policy import Policy
from prefopt.policy.rows import flex


@pytest.fixture(autouse=True)
def nothing_compared_yet(monkeypatch):
    """What one test has found exact is not known to the next."""
    monkeypatch.setattr("prefopt.policy.rows.verified.LONGEST", {})
    monkeypatch.setattr("prefopt.policy.rows.verified._file", lambda kind: None)


@pytest.fixture
def plain_logps():
    """Log-probs of each completion on its own, unpadded row: [B, K, T], from the model's own logits."""

    def compute(model, batch, statistic=None, temperature=None):
        out = torch.zeros(batch.mask.shape, dtype=torch.float64)
        for b, prompt in enumerate(batch.prompt_ids):
            for k in range(batch.mask.shape[1]):
                where = batch.mask[b, k].nonzero().flatten().tolist()
                if not where:
                    continue
                row = torch.tensor([[*prompt, *batch.completion_ids[b, k, : where[-1] + 1].tolist()]])
                logits = model(input_ids=row).logits[0]
                if temperature is not None:
                    logits = logits / temperature[b]
                scores = logits.log_softmax(-1)
                for t in where:
                    at = scores[len(prompt) + t - 1]
                    out[b, k, t] = statistic(at) if statistic else at[batch.completion_ids[b, k, t]]
        return out

    return compute


@pytest.fixture
def make_llama(tiny):
    """A random Llama in float64."""

    def make(seed=0, **changes):
        torch.manual_seed(seed)
        return AutoModelForCausalLM.from_config(LlamaConfig(**tiny | changes)).double().eval()

    return make


@pytest.fixture
def llama(make_llama, tokenizer):
    return Policy(make_llama(), tokenizer)


@pytest.fixture
def gradients():
    """The gradient of every parameter, flattened to one vector."""

    def compute(module: nn.Module, loss: torch.Tensor) -> torch.Tensor:
        parameters = [p for p in module.parameters() if p.requires_grad]
        found = torch.autograd.grad(loss, parameters, allow_unused=True)
        return torch.cat(
            [(torch.zeros_like(p) if g is None else g).flatten() for p, g in zip(parameters, found, strict=True)]
        )

    return compute


@pytest.fixture
def in_blocks(monkeypatch):
    """Rows are packed for FlexAttention, as on a GPU, and it computes uncompiled, by its own definition.

    Its backward pass is let run on a CPU, for which torch 2.13 has no kernel and so refuses it (`_validate_device`).
    """
    monkeypatch.setattr(flex, "DEVICES", ("cpu",))
    monkeypatch.setattr("prefopt.policy.rows.prefix_sharing.use_segment_attention", lambda backbone: False)
    monkeypatch.setattr(flex_attention, "_validate_device", lambda *given: None)
    monkeypatch.setattr(flex_attention, "_WARNINGS_SHOWN", {"flex_attention_performance"})
