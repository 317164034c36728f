"""From hidden states to log-probabilities, without ever keeping [tokens × vocabulary]."""

from collections.abc import Callable, Collection
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from prefopt.errors import PrefoptError

CHUNK_ELEMENTS = 2**24
"""Logits alive at a time: 64 MB in fp32, whatever the vocabulary and the number of tokens."""

STATISTICS: dict[str, Callable[[Tensor], Tensor]] = {
    "entropy": lambda own: -(own.exp() * own).sum(-1),
    "log_sum_squares": lambda own: (2 * own).logsumexp(-1),
}
"""Full-vocabulary numbers that one model alone can give, from its log-probs [M, V]."""

DIVERGENCES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "kl_policy_ref": lambda own, other: (own.exp() * (own - other)).sum(-1),
    "kl_ref_policy": lambda own, other: (other.exp() * (other - own)).sum(-1),
}
"""Those that take the reference's log-probs as well, exact at every token."""


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

    def __call__(self, hidden: Float[Tensor, "m H"]) -> Float[Tensor, "m V"]:
        """[m, H] to [m, V]."""
        logits = self.linear(hidden)
        if self.scale != 1.0:
            logits = logits * self.scale
        return self.cap * torch.tanh(logits / self.cap) if self.cap else logits


class States(NamedTuple):
    """What a model knows before it says anything of M tokens.

    Attributes:
        logits: [m, H] to [m, V].
        hidden: [M, H], the states that predict the tokens.
        vocabulary: V, which sets the size of a chunk.
    """

    logits: Callable[[Tensor], Tensor]
    hidden: Tensor
    vocabulary: int


def token_statistics(
    states: States,
    tokens: Int[Tensor, " M"],
    temperature: Float[Tensor, " M"] | None = None,
    names: Collection[str] = (),
    reference: States | None = None,
) -> dict[str, Float[Tensor, " M"]]:
    """Log-probs of the tokens under "logps", and the statistics asked for, each [M] and at least fp32.

    The logits of a chunk are computed again in the backward pass instead of being kept.

    Args:
        states: of the model.
        tokens: [M] int64.
        temperature: [M] that the logits are divided by; None is 1.
        names: of `STATISTICS` and `DIVERGENCES`.
        reference: of the reference, for divergences.

    Raises:
        PrefoptError: the two have vocabularies of different size.
    """
    names = sorted(names)
    if reference is not None and reference.vocabulary != states.vocabulary:
        raise PrefoptError(
            f"exact KL needs one vocabulary; the policy's LM head has {states.vocabulary} rows, the reference's "
            f"{reference.vocabulary}"
        )

    def of_chunk(hidden: Tensor, tokens: Tensor, temperature: Tensor | None, beside: Tensor | None) -> list[Tensor]:
        scores = _scaled(states.logits(hidden), temperature)
        normaliser = scores.logsumexp(-1)
        found = [scores.gather(-1, tokens[:, None]).squeeze(-1) - normaliser]
        own = scores - normaliser[:, None] if names else scores
        other = own
        if reference is not None and beside is not None:
            with torch.no_grad():
                other = _scaled(reference.logits(beside), temperature).log_softmax(-1)
        return found + [STATISTICS[n](own) if n in STATISTICS else DIVERGENCES[n](own, other) for n in names]

    size = max(1, CHUNK_ELEMENTS // states.vocabulary)
    parts = []
    for start in range(0, max(len(tokens), 1), size):
        inputs = (states.hidden, tokens, temperature, None if reference is None else reference.hidden)
        chunk = [None if field is None else field[start : start + size] for field in inputs]
        if torch.is_grad_enabled():
            parts.append(checkpoint(of_chunk, *chunk, use_reentrant=False, preserve_rng_state=False))
        else:
            parts.append(of_chunk(*chunk))  # type: ignore[arg-type]
    return {name: torch.cat(column) for name, column in zip(["logps", *names], zip(*parts, strict=True), strict=True)}


def _scaled(logits: Tensor, temperature: Tensor | None) -> Tensor:
    logits = logits if logits.dtype == torch.float64 else logits.float()
    return logits if temperature is None else logits / temperature.to(logits.dtype)[:, None]
