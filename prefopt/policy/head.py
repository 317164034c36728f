"""From hidden states to log-probabilities, without ever keeping [tokens × vocabulary]."""

from collections.abc import Callable, Collection

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

CHUNK_ELEMENTS = 2**24
"""Logits alive at a time: 64 MB in fp32, whatever the vocabulary and the number of tokens."""

STATISTICS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "entropy": lambda scores, normaliser: normaliser - ((scores - normaliser[:, None]).exp() * scores).sum(-1),
    "log_sum_squares": lambda scores, normaliser: (2 * scores).logsumexp(-1) - 2 * normaliser,
}
"""Full-vocabulary numbers that one model alone can give, from logits [M, V] and their logsumexp [M]."""


class Head:
    """Hidden states [M, H] to logits [M, V], as the model's own `forward` makes them.

    Architectures scale or cap their logits after the LM head, each under a name of its own; these are names found in
    transformers 5.23 (`grep logit_scale transformers/models/*/modeling_*.py`). Because no such list is complete, `Policy`
    compares with the model's own logits on its first batch.
    """

    def __init__(self, model: PreTrainedModel):
        config = model.config.get_text_config()
        self.linear = model.get_output_embeddings()
        self.vocabulary: int = self.linear.weight.shape[0]
        self.scale = getattr(config, "logit_scale", None) or getattr(config, "lm_head_multiplier", None) or 1.0
        self.scale /= getattr(config, "logits_scaling", None) or 1.0
        self.cap = getattr(config, "final_logit_softcapping", None)

    def __call__(self, hidden: Tensor) -> Tensor:
        """[m, H] to [m, V]."""
        logits = self.linear(hidden)
        if self.scale != 1.0:
            logits = logits * self.scale
        return self.cap * torch.tanh(logits / self.cap) if self.cap else logits


def token_statistics(
    logits: Callable[[Tensor], Tensor],
    hidden: Tensor,
    tokens: Tensor,
    vocabulary: int,
    temperature: Tensor | None = None,
    names: Collection[str] = (),
) -> dict[str, Tensor]:
    """Log-probs of the tokens under "logps", and the statistics asked for, each [M] and at least fp32.

    The logits of a chunk are computed again in the backward pass instead of being kept.

    Args:
        logits: [m, H] to [m, V].
        hidden: [M, H], the states that predict the tokens.
        tokens: [M] int64.
        vocabulary: V, which sets the size of a chunk.
        temperature: [M] that the logits are divided by; None is 1.
        names: of `STATISTICS`.
    """
    names = sorted(names)

    def of_chunk(hidden: Tensor, tokens: Tensor, temperature: Tensor | None) -> tuple[Tensor, ...]:
        scores = logits(hidden)
        scores = scores if scores.dtype == torch.float64 else scores.float()
        if temperature is not None:
            scores = scores / temperature.to(scores.dtype)[:, None]
        normaliser = scores.logsumexp(-1)
        chosen = scores.gather(-1, tokens[:, None]).squeeze(-1)
        return (chosen - normaliser, *(STATISTICS[name](scores, normaliser) for name in names))

    size = max(1, CHUNK_ELEMENTS // vocabulary)
    parts = []
    for start in range(0, max(len(tokens), 1), size):
        piece = slice(start, start + size)
        chunk = (hidden[piece], tokens[piece], None if temperature is None else temperature[piece])
        if torch.is_grad_enabled():
            parts.append(checkpoint(of_chunk, *chunk, use_reentrant=False, preserve_rng_state=False))
        else:
            parts.append(of_chunk(*chunk))
    return {name: torch.cat(column) for name, column in zip(["logps", *names], zip(*parts, strict=True), strict=True)}
