"""How a batch of prompts × completions becomes rows of tokens for a model.

A plain row is `prompt | y`. A shared row is `prompt | y_1 | … | y_K`: the prompt is computed once, and every completion sees the
prompt and itself, at the positions that it would have alone. A packed row is all shared rows of a batch, one after another.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any, NamedTuple

import torch
from torch import Tensor

from prefopt.policy.rows.attention import Segments
from prefopt.types import Batch


@dataclass(frozen=True)
class Rows:
    """N rows of tokens, right-padded to length L.

    Attributes:
        input_ids: [N, L] int64.
        attention_mask: [N, L] int64; 1 on tokens, 0 on padding.
        predicts: [M] int64, for each True entry of `batch.mask` in order, the place in the flattened rows (n · L + l) whose
            hidden state predicts it. In shared rows the last token of a prompt predicts the first one of several completions.
        last: [N] int64, the position of each row's last token.
        branches: [N, L] int64 where a row is shared: 0 on the prompt, k on the k-th completion, a number of its own on padding.
        positions: [N, L] int64 where a row is shared: tokens before this one, of those that it may see.
        segments: of the one row, where rows are packed.
    """

    input_ids: Tensor
    attention_mask: Tensor
    predicts: Tensor
    last: Tensor
    branches: Tensor | None = None
    positions: Tensor | None = None
    segments: Segments | None = None

    @property
    def shared(self) -> bool:
        """Whether a prompt stands before more than one completion."""
        return self.positions is not None

    @property
    def longest(self) -> int:
        """Tokens of the longest prompt and what shares it."""
        if self.segments is None:
            return self.input_ids.shape[1]
        return max(prompt + sum(completions) for prompt, completions in self.segments.groups)

    def predicting(self, states: Tensor) -> Tensor:
        """[M, …], the states that predict tokens, of [N, L, …]."""
        return states.flatten(0, 1)[self.predicts]

    def to(self, device: torch.device) -> "Rows":
        """The same rows on `device`."""
        moved: dict[str, Any] = {
            name: value.to(device) for name, value in vars(self).items() if isinstance(value, Tensor)
        }
        return replace(self, **moved)

    def tokens(self) -> tuple[int, int]:
        """Tokens, and the same with padding."""
        return int(self.attention_mask.sum()), self.attention_mask.numel()


def lay(batch: Batch, device: torch.device, width: int | None = None) -> Rows:
    """Rows `prompt | completion`, or `prompt | y_1 | y_2 | …` where that is less to compute; never none.

    How the completions of a prompt are laid out depends on that prompt alone, not on its companions in the batch. Padding is on
    the right, so a causal model never sees it, and positions count from the prompt's first token whatever the padding. The id of
    the padding is 0: it is masked, and no model needs to have one of its own.

    Args:
        batch: B prompts × K completions.
        device: where the rows are to be.
        width: H, of the decoder that will read them; None for plain rows.

    Raises:
        ValueError: a prompt without tokens: nothing would predict the first token of its completions.
    """
    rows = [(prompt, part) for prompt, written in _groups(batch) for part in _parts(len(prompt), written, width)]
    # A micro-batch of absent completions: most models cannot read no rows, so one that predicts nothing.
    rows = rows or [NOTHING]
    sizes = [_size(row) for row in rows]
    longest = max(sizes)
    laid = _laid(rows, [row * longest for row in range(len(rows))], len(rows) * longest)
    last = torch.tensor(sizes) - 1
    shared = any(len(part) > 1 for _, part in rows)
    branches = torch.where(laid.branches < 0, batch.mask.shape[1] + 1, laid.branches).view(-1, longest)
    found = Rows(
        input_ids=laid.ids.view(-1, longest),
        attention_mask=(torch.arange(longest) <= last[:, None]).long(),
        predicts=laid.predicts,
        last=last,
        branches=branches if shared else None,
        positions=laid.positions.view(-1, longest) if shared else None,
    )
    return found.to(device)


def pack(batch: Batch, device: torch.device) -> Rows:
    """One row `prompt | y_1 | y_2 | … | prompt | y_1 | …` without padding, for attention by segments.

    Args:
        batch: B prompts × K completions.
        device: where the row is to be.

    Raises:
        ValueError: a prompt without tokens.
    """
    rows = [row for row in _groups(batch) if row[1]] or [NOTHING]
    ends = list(accumulate(map(_size, rows)))
    laid = _laid(rows, [0, *ends[:-1]], ends[-1])
    found = Rows(
        input_ids=laid.ids[None],
        attention_mask=torch.ones(1, ends[-1], dtype=torch.long),
        predicts=laid.predicts,
        last=torch.tensor([ends[-1] - 1]),
        positions=laid.positions[None],
        segments=Segments([(len(prompt), [len(tokens) for tokens, _ in part]) for prompt, part in rows]),
    )
    return found.to(device)


class _Laid(NamedTuple):
    """Rows in flat tensors; branches are −1 where there is nothing."""

    ids: Tensor
    branches: Tensor
    positions: Tensor
    predicts: Tensor


def _laid(rows: Sequence["Row"], begins: Sequence[int], size: int) -> _Laid:
    """Rows from these places on, in `size` places."""
    ids, positions = torch.zeros(2, size, dtype=torch.long)
    branches = torch.full((size,), -1)
    predicts: list[int] = []
    for begin, (prompt, part) in zip(begins, rows, strict=True):
        first = start = begin + len(prompt)
        ids[begin:start] = torch.tensor(prompt)
        branches[begin:start] = 0
        positions[begin:start] = torch.arange(len(prompt))
        for k, (tokens, mask) in enumerate(part, 1):
            end = start + len(tokens)
            ids[start:end] = torch.tensor(tokens)
            branches[start:end] = k
            positions[start:end] = torch.arange(len(prompt), len(prompt) + len(tokens))
            predicts += [first - 1] * mask[0]
            predicts += [start + t - 1 for t in range(1, len(mask)) if mask[t]]
            start = end
    return _Laid(ids, branches, positions, torch.tensor(predicts, dtype=torch.long))


def _size(row: "Row") -> int:
    prompt, part = row
    return len(prompt) + sum(len(tokens) for tokens, _ in part)


def tree_mask(rows: Rows, dtype: torch.dtype, window: int | None = None) -> Tensor:
    """[N, 1, L, L], what is added to attention scores: 0 where a token of a shared row sees another, else the least number.

    Additive, because eager attention adds what it is given. Padding sees the prompt and padding: no token sees nothing.

    Args:
        rows: with branches and positions.
        dtype: of the model.
        window: how many tokens back a token sees, itself included; None for all.
    """
    branches, positions = rows.branches, rows.positions
    assert branches is not None
    assert positions is not None
    length = branches.shape[1]
    sees = torch.ones(length, length, dtype=torch.bool, device=branches.device).tril()
    sees = sees & ((branches[:, :, None] == branches[:, None, :]) | (branches == 0)[:, None, :])
    if window is not None:
        sees &= positions[:, :, None] - positions[:, None, :] < window
    return torch.zeros(sees.shape, dtype=dtype, device=sees.device).masked_fill_(~sees, torch.finfo(dtype).min)[:, None]


def completions_alone(batch: Batch) -> list[Batch]:
    """Each completion that is present, as a batch of its own."""
    return [
        Batch((batch.prompt_ids[b],), batch.completion_ids[b, k][None, None], batch.mask[b, k][None, None])
        for b, k in batch.present.nonzero().tolist()
    ]


PredictedTokens = tuple[list[int], list[bool]]
"""A completion's tokens, up to the last that is to be predicted, and which of them are."""

Row = tuple[tuple[int, ...], Sequence[PredictedTokens]]
"""A prompt and the completions that stand behind it."""

NOTHING: Row = ((0,), ())


def _groups(batch: Batch) -> list[Row]:
    """Each prompt with the completions that are present."""
    if not all(batch.prompt_ids):
        raise ValueError("a prompt without tokens; begin it with the tokenizer's BOS or EOS token")
    lengths = batch.lengths.tolist()
    ids, masks = batch.completion_ids.tolist(), batch.mask.tolist()
    return [
        (prompt, [(tokens[:n], mask[:n]) for tokens, mask, n in zip(*row, strict=True) if n])
        for prompt, *row in zip(batch.prompt_ids, ids, masks, lengths, strict=True)
    ]


def _parts(prompt: int, written: Sequence[PredictedTokens], width: int | None) -> list[Sequence[PredictedTokens]]:
    """The completions of one prompt, cut into rows so that a decoder of this width has the least to do.

    A layer spends about 24·H² on a token, and 4·H on each token that it looks at: all L of a shared row, because a tree mask has
    no fast path, half of them in a plain row.
    """

    def cost(part: Sequence[PredictedTokens]) -> float:
        length = prompt + sum(len(tokens) for tokens, _ in part)
        return length * (6 * (width or 0) + length / (1 if len(part) > 1 else 2))

    cuts = [[written[i : i + size] for i in range(0, len(written), size)] for size in _sizes(len(written), width)]
    return min(cuts, key=lambda parts: sum(map(cost, parts)))


def _sizes(completions: int, width: int | None) -> list[int]:
    """Completions in a row: 1, 2, 4, … and all."""
    return [1] if width is None else sorted({2**i for i in range(completions.bit_length())} | {max(completions, 1)})
