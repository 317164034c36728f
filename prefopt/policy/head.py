"""Log-probabilities from hidden states, without keeping logits [tokens × vocabulary] for the backward pass."""

from collections.abc import Callable, Collection, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from prefopt.policy.compat import CAPS, DIVISORS, SCALES
from prefopt.support.errors import PrefoptError

CHUNK_ELEMENTS = 2**24
"""Logits in memory at a time: 64 MB in fp32, whatever the vocabulary and the number of tokens."""

STATISTICS: dict[str, Callable[[Tensor], Tensor]] = {
    "entropy": lambda own: -(own.exp() * own).sum(-1),
    "log_sum_squares": lambda own: (2 * own).logsumexp(-1),
}
"""Full-vocabulary statistics of one model, from its log-probs [M, V]."""

DIVERGENCES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "kl_policy_ref": lambda own, other: (own.exp() * (own - other)).sum(-1),
    "kl_ref_policy": lambda own, other: (other.exp() * (other - own)).sum(-1),
}
"""Divergences between policy and reference at each token, exact, from the log-probs of both, [M, V] each."""


class Head:
    """Hidden states [M, H] to logits [M, V], as the model's own `forward` makes them.

    Architectures scale or cap their logits after the LM head, under names of their own (listed in `policy.compat`). Because no
    such list is complete, `Policy` compares with the model's own logits on its first batch.
    """

    def __init__(self, model: PreTrainedModel):
        config = model.config.get_text_config()
        self.linear = model.get_output_embeddings()
        self.vocabulary: int = self.linear.weight.shape[0]
        self.scale: float = _first(config, SCALES) or 1.0
        self.scale /= _first(config, DIVISORS) or 1.0
        self.cap = _first(config, CAPS)

    def __call__(self, hidden: Float[Tensor, "m H"]) -> Float[Tensor, "m V"]:
        """[m, H] to [m, V]."""
        logits = self.linear(hidden)
        if self.scale != 1.0:
            logits = logits * self.scale
        return self.cap * torch.tanh(logits / self.cap) if self.cap else logits

    @property
    def is_linear(self) -> bool:
        """Whether logits are a product with a plain weight: not capped, not wrapped by an adapter, not sharded."""
        return not self.cap and type(self.linear) is nn.Linear and type(self.linear.weight) is nn.Parameter


def _first(config: Any, names: Sequence[str]) -> float | None:
    """The first of these settings that a config has and that is not 0."""
    return next((value for name in names if (value := getattr(config, name, None))), None)


class States(NamedTuple):
    """Hidden states that predict M tokens, and how to get logits from them.

    Attributes:
        logits: [m, H] to [m, V].
        hidden: [M, H], the states that predict the tokens.
        vocabulary: V; it determines the size of a chunk.
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
    watched: Collection[str] = (),
) -> dict[str, Float[Tensor, " M"]]:
    """Log-probs of the tokens under "logps", and the statistics asked for, each [M] and at least fp32.

    Logits are computed chunk by chunk, and again in the backward pass instead of being kept.

    Args:
        states: of the model.
        tokens: [M] int64.
        temperature: [M] that the logits are divided by; None is 1.
        names: of `STATISTICS` and `DIVERGENCES`.
        reference: states of the reference, for divergences.
        watched: further names, whose statistics have no gradient.

    Raises:
        PrefoptError: policy and reference have vocabularies of different size.
    """
    if not torch.is_grad_enabled():
        names, watched = (), {*names, *watched}
    if reference is not None and reference.vocabulary != states.vocabulary:
        raise PrefoptError(
            f"exact KL needs one vocabulary; the policy's LM head has {states.vocabulary} rows, the reference's "
            f"{reference.vocabulary}"
        )

    if not names and {"entropy"}.issuperset(watched) and isinstance(states.logits, Head) and states.logits.is_linear:
        return _linear_statistics(states.logits, states.hidden, tokens, temperature, "entropy" in watched)
    if torch.is_grad_enabled() and (more := {*watched} - {*names}):  # apart: only log-probs have a gradient
        with torch.no_grad():
            further = token_statistics(states, tokens, temperature, more, reference)
        return further | token_statistics(states, tokens, temperature, names, reference)
    names = sorted({*names, *watched})

    def of_chunk(hidden: Tensor, tokens: Tensor, temperature: Tensor | None, theirs: Tensor | None) -> list[Tensor]:
        scores = _scaled(states.logits(hidden), temperature)
        normaliser = scores.logsumexp(-1)
        logps = [scores.gather(-1, tokens[:, None]).squeeze(-1) - normaliser]
        own = scores - normaliser[:, None] if names else scores
        other = own
        if reference is not None and theirs is not None:
            with torch.no_grad():
                other = _scaled(reference.logits(theirs), temperature).log_softmax(-1)
        return logps + [STATISTICS[n](own) if n in STATISTICS else DIVERGENCES[n](own, other) for n in names]

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


def _linear_statistics(
    head: Head, hidden: Tensor, tokens: Tensor, temperature: Tensor | None, entropy: bool
) -> dict[str, Tensor]:
    """[M] log-probs, and entropies without a gradient, from a head that is a plain linear layer."""
    weight, bias, device = head.linear.weight, head.linear.bias, hidden.device.type
    if torch.is_autocast_enabled(
        device
    ):  # as a linear layer does; outside of the function the casts are differentiated
        dtype = torch.get_autocast_dtype(device)
        hidden, weight, bias = hidden.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)
    kind, factor = torch.promote_types(hidden.dtype, torch.float32), None
    if head.scale != 1.0 or temperature is not None:
        factor = torch.full((len(tokens), 1), head.scale, dtype=kind, device=hidden.device)
        factor = factor if temperature is None else factor / temperature.to(kind)[:, None]
    logps, entropies = LinearLogps.apply(hidden, weight, bias, factor, tokens, entropy)
    return {"logps": logps, "entropy": entropies} if entropy else {"logps": logps}


class LinearLogps(torch.autograd.Function):
    """log softmax(factor · (hidden @ weightᵀ + bias))[token], with an explicit backward pass.

    ∂logp/∂logits = onehot(token) − softmax. Where the weight is frozen, ∂logp/∂hidden is taken in the forward pass, chunk by
    chunk, while the logits are in memory. Where it is trained, its gradient multiplies every logit by a number known only in the
    backward pass: logits that fit into one chunk are kept for it, others are computed again.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        factor: Tensor | None,
        tokens: Tensor,
        entropy: bool,
    ) -> tuple[Tensor, Tensor | None]:
        """Log-probs [M] and, if wanted, entropies [M], from [M, H], [V, H], [V], [M, 1] (None is 1) and [M]."""
        to_hidden, to_weight, to_bias, *_ = ctx.needs_input_grad
        slopes = torch.empty_like(hidden) if to_hidden and not (to_weight or to_bias) else None
        logps = torch.empty(len(tokens), dtype=torch.promote_types(hidden.dtype, torch.float32), device=hidden.device)
        entropies = torch.empty_like(logps) if entropy else None
        chunks = _chunks(len(tokens), len(weight))
        scores = None
        for part in chunks:
            scores = _log_softmax(hidden, weight, bias, factor, part)
            logps[part] = scores.gather(-1, tokens[part, None])[:, 0]
            if entropies is not None:
                entropies[part] = -torch.linalg.vecdot(scores.exp(), scores)
            if slopes is not None:
                slopes[part] = (
                    _slopes(scores, 1.0 if factor is None else factor[part], tokens[part]).to(hidden.dtype) @ weight
                )
        if slopes is not None:
            ctx.save_for_backward(slopes)
        else:
            ctx.save_for_backward(hidden, weight, bias, factor, tokens)
            ctx.scores = scores if len(chunks) == 1 and any(ctx.needs_input_grad) else None
        if entropies is not None:
            ctx.mark_non_differentiable(entropies)
        return logps, entropies

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor, _: Tensor | None) -> tuple[Tensor | None, ...]:
        """The gradients of hidden, weight and bias."""
        if len(ctx.saved_tensors) == 1:
            return (gradient.to(ctx.saved_tensors[0].dtype)[:, None] * ctx.saved_tensors[0], *[None] * 5)
        hidden, weight, bias, factor, tokens = ctx.saved_tensors
        by_hidden, by_weight = torch.empty_like(hidden), torch.zeros_like(weight)
        by_bias = None if bias is None else torch.zeros_like(bias)
        for part in _chunks(len(tokens), len(weight)):
            scores = _log_softmax(hidden, weight, bias, factor, part) if ctx.scores is None else ctx.scores
            ctx.scores = None
            above = gradient[part, None] if factor is None else factor[part] * gradient[part, None]
            slopes = _slopes(scores, above, tokens[part]).to(hidden.dtype)
            torch.mm(slopes, weight, out=by_hidden[part])
            by_weight.addmm_(slopes.T, hidden[part])
            if by_bias is not None:
                by_bias += slopes.sum(0)
        return by_hidden, by_weight, by_bias, None, None, None


def _chunks(tokens: int, vocabulary: int) -> list[slice]:
    size = max(1, CHUNK_ELEMENTS // vocabulary)
    return [slice(start, start + size) for start in range(0, tokens, size)]


def _log_softmax(hidden: Tensor, weight: Tensor, bias: Tensor | None, factor: Tensor | None, part: slice) -> Tensor:
    """[m, V], at least fp32, of the tokens of a slice."""
    logits = torch.nn.functional.linear(hidden[part], weight, bias)
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return (logits if factor is None else logits.mul_(factor[part])).log_softmax(-1)


def _slopes(scores: Tensor, factor: Tensor | float, tokens: Tensor) -> Tensor:
    """[m, V], factor · (onehot(token) − softmax), in place of the log-softmax."""
    slopes = scores.exp_().mul_(-factor)
    at_token = slopes.new_ones(len(tokens), 1) * factor
    return slopes.scatter_add_(-1, tokens[:, None], at_token)
