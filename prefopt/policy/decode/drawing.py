"""Drawing the tokens of rows that a model reads as they are written."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import TopKLogitsWarper, TopPLogitsWarper

from prefopt.policy.decode.noise import sampled_tokens
from prefopt.recipe import Sampling
from prefopt.support.profile import counted

LEAVE = 1 / 8
"""Share of rows that must have ended before they are taken out of the cache: doing so after each would cost more than it saves."""


@dataclass
class DrawnTokens:
    """The tokens of one completion or turn, and the sampler's log-prob of each; None where it has none."""

    tokens: list[int]
    logps: list[float] | None = None


class Stepping(Protocol):
    """Rows that are read token by token."""

    def keep(self, rows: Tensor) -> None:
        """Go on with these rows alone."""
        ...

    def step(self, tokens: Tensor) -> Tensor:
        """Read one token of each row, [N]; logits [N, V] of the next."""
        ...


def draw_rows(
    reading: Stepping,
    logits: Tensor,
    settings: Sampling,
    keys: Tensor,
    ends: Sequence[int],
    most: Tensor | None = None,
    completed: Callable[[Tensor], Tensor] | None = None,
) -> list[DrawnTokens]:
    """What follows in each row, up to a token that ends it.

    Args:
        reading: has read the rows.
        logits: [N, V] of the first token of each.
        settings: temperature, top_p, top_k, max_tokens.
        keys: [N] int64, of the rows' noise.
        ends: tokens that end a row.
        most: [N] int64, tokens of each row, at most; None is `max_tokens` for all.
        completed: what says of the tokens of rows so far, [n, t], whether the last one ends the row in another way, [n].
    """
    device, count = logits.device, len(keys)
    rows, keys = torch.arange(count, device=device), keys.to(device)
    stops = torch.tensor(list(ends), dtype=torch.long, device=device)
    limits = torch.full((count,), settings.max_tokens, device=device) if most is None else most.to(device)
    longest = int(limits.max())
    tokens = torch.zeros(count, longest, dtype=torch.long, device=device)
    logps = torch.zeros(count, longest, dtype=logits.dtype, device=device)
    lengths = torch.zeros(count, dtype=torch.long, device=device)
    going = torch.ones(count, dtype=torch.bool, device=device)  # of the rows that are still held
    computed = 0
    for position in range(longest):
        scores = logits if settings.temperature in (0, 1) else logits / settings.temperature
        chosen, of_chosen = chosen_tokens(scores, settings, keys, position)
        tokens[rows, position], logps[rows, position] = chosen, of_chosen
        lengths[rows] += going
        computed += len(rows)
        going = going & ~torch.isin(chosen, stops) & (limits[rows] > position + 1)
        if completed is not None:
            going[going.clone()] = ~completed(tokens[rows[going], : position + 1])
        left = int(going.sum())
        if not left:
            break
        if left <= (1 - LEAVE) * len(rows):
            held = going.nonzero()[:, 0]
            reading.keep(held)
            rows, keys, chosen, going = rows[held], keys[held], chosen[held], going[held]
        logits = reading.step(chosen)
    counted(lambda: (int(lengths.sum()), computed))
    rows_drawn = zip(tokens.tolist(), logps.tolist(), lengths.tolist(), strict=True)
    return [DrawnTokens(ids[:length], of_ids[:length]) for ids, of_ids, length in rows_drawn]


def chosen_tokens(scores: Tensor, settings: Sampling, keys: Tensor, position: int) -> tuple[Tensor, Tensor]:
    """The next token of each row and its log-prob before truncation, [N] each, from scores at the temperature, [N, V]."""
    truncated = scores
    for warper in truncation(settings):
        truncated = warper(None, truncated)  # neither looks at the tokens so far
    if settings.temperature == 0:
        chosen, normaliser = scores.argmax(-1), scores.logsumexp(-1)
    else:
        chosen, normaliser = sampled_tokens(truncated, keys, position)
        normaliser = normaliser if truncated is scores else scores.logsumexp(-1)
    return chosen, scores.gather(-1, chosen[:, None])[:, 0] - normaliser


def truncation(settings: Sampling) -> list[Any]:
    """What takes unlikely tokens out."""
    warpers: list[Any] = [TopKLogitsWarper(settings.top_k)] if settings.top_k else []
    return warpers + ([TopPLogitsWarper(settings.top_p)] if settings.top_p < 1 else [])
