"""Layouts: how a batch of prompts × completions becomes rows of tokens for a model.

A plain row is `prompt | y`. A shared row is `prompt | y_1 | … | y_K`: the prompt is computed once, and every completion sees the
prompt and itself, at the positions that it would have alone. Tokens with which all K completions begin are computed once, too, as
if they were the prompt's. A packed row is all shared rows of a batch, one after another, without padding.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, compress, takewhile
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from prefopt.policy.rows.attention import Segments
from prefopt.support.sending import sent
from prefopt.types import Batch

Wanted = Literal["predicting", "reading", "ending"]
"""Which states are wanted of rows: those that predict the tokens of the mask, one place before them, so that the last token of a
completion need not be read; those that have read them; those at the end of each completion."""


@dataclass(frozen=True)
class Layout:
    """A batch as N rows of tokens, right-padded to length L.

    Attributes:
        input_ids: [N, L] int64.
        attention_mask: [N, L] int64; 1 on tokens, 0 on padding.
        places: [M] int64, where the wanted states are in the flattened rows (n · L + l): for each True entry of `batch.mask`, in
            order, or for each completion. In shared rows the last token of a prompt predicts the first of several completions.
        branches: [N, L] int64 where a row is shared: 0 on the prompt, k on the k-th completion, another number on padding.
        positions: [N, L] int64 where a row is shared: position ids, the number of earlier tokens that a token attends to.
        segments: of the one row, where rows are packed.
    """

    input_ids: Tensor
    attention_mask: Tensor
    places: Tensor
    branches: Tensor | None = None
    positions: Tensor | None = None
    segments: Segments | None = None

    @property
    def shared(self) -> bool:
        """Whether a prompt is followed by more than one completion."""
        return self.positions is not None

    @property
    def longest(self) -> int:
        """Tokens of the longest prompt together with the completions that share it."""
        if self.segments is None:
            return self.input_ids.shape[1]
        return max(prompt + sum(completions) for prompt, completions in self.segments.groups)

    def wanted(self, states: Tensor) -> Tensor:
        """[M, …], the wanted ones of the states [N, L, …]."""
        return states.flatten(0, 1)[self.places]

    def to(self, device: torch.device) -> "Layout":
        """The same rows on `device`."""
        moved: dict[str, Any] = {
            name: sent(value, device) for name, value in vars(self).items() if isinstance(value, Tensor)
        }
        return replace(self, **moved)

    def tokens(self) -> tuple[int, int]:
        """Number of tokens, without and with padding."""
        return int(self.attention_mask.sum()), self.attention_mask.numel()


def padded(
    batch: Batch,
    device: torch.device,
    width: int | None = None,
    wanted: Wanted = "predicting",
    padding: int | None = None,
) -> Layout:
    """Rows `prompt | completion`, or `prompt | y_1 | y_2 | …` where that is less to compute; at least one row.

    The rows of a prompt depend on that prompt and its completions alone, not on the rest of the batch. Padding is on the right, so
    a causal model does not attend to it, and positions count from the prompt's first token. Padding has the id 0: it is masked, and
    a model needs no padding token.

    Args:
        batch: B prompts × K completions.
        device: of the result.
        width: H, of the decoder that will read the rows; None for plain rows.
        wanted: which states; where none predicts a token, a prompt may be without tokens.
        padding: a token that is never the end of a completion; None for none.

    Raises:
        ValueError: a prompt without tokens: nothing would predict the first token of its completions.
    """
    rows = [part for group in _groups(batch, wanted) for part in _divided(group, width)]
    # Most models cannot read zero rows: a micro-batch of absent completions gets one that predicts nothing.
    rows = rows or [EMPTY]
    sizes = [row.size for row in rows]
    longest = max(sizes)
    flat = _flat(rows, [row * longest for row in range(len(rows))], len(rows) * longest, wanted, padding)
    shared = any(len(row.completions) > 1 for row in rows)
    branches = torch.where(flat.branches < 0, batch.mask.shape[1] + 1, flat.branches).view(-1, longest)
    layout = Layout(
        input_ids=flat.ids.view(-1, longest),
        attention_mask=(torch.arange(longest) < torch.tensor(sizes)[:, None]).long(),
        places=flat.places,
        branches=branches if shared else None,
        positions=flat.positions.view(-1, longest) if shared else None,
    )
    return layout.to(device)


def packed(batch: Batch, device: torch.device, wanted: Wanted = "predicting", padding: int | None = None) -> Layout:
    """One row `prompt | y_1 | y_2 | … | prompt | y_1 | …` without padding, for attention by segments.

    Args:
        batch: B prompts × K completions.
        device: of the result.
        wanted: which states.
        padding: a token that is never the end of a completion; None for none.

    Raises:
        ValueError: a prompt without tokens.
    """
    rows = [_joined(group) for group in _groups(batch, wanted) if group.completions] or [EMPTY]
    *begins, total = accumulate((row.size for row in rows), initial=0)
    flat = _flat(rows, begins, total, wanted, padding)
    layout = Layout(
        input_ids=flat.ids[None],
        attention_mask=torch.ones(1, total, dtype=torch.long),
        places=flat.places,
        positions=flat.positions[None],
        segments=Segments([(len(row.prompt) + row.common, [size for size in row.sizes if size]) for row in rows]),
    )
    return layout.to(device)


ReadTokens = tuple[list[int], list[bool]]
"""The tokens of a completion that are read, and its mask up to the last True: one longer, where that token is only predicted."""


class Group(NamedTuple):
    """A prompt and the completions that follow it in one row.

    Attributes:
        prompt: its tokens.
        completions: whole.
        common: how many tokens, with which all of them begin, follow the prompt but once.
    """

    prompt: tuple[int, ...]
    completions: Sequence[ReadTokens]
    common: int = 0

    @property
    def sizes(self) -> list[int]:
        """Tokens of each completion behind the common ones."""
        return [len(tokens) - self.common for tokens, _ in self.completions]

    @property
    def size(self) -> int:
        """Tokens in all."""
        return len(self.prompt) + self.common + sum(self.sizes)


EMPTY = Group((0,), ())


def _joined(group: Group) -> Group:
    """The same with what its completions have in common counted; nothing for a single one."""
    if len(group.completions) < 2:
        return group
    columns = zip(*(tokens for tokens, _ in group.completions), strict=False)
    return group._replace(common=sum(1 for _ in takewhile(lambda column: len(set(column)) == 1, columns)))


class _Flat(NamedTuple):
    """Rows in flat tensors; branches are −1 on padding."""

    ids: Tensor
    branches: Tensor
    positions: Tensor
    places: Tensor


def _flat(rows: Sequence[Group], begins: Sequence[int], size: int, wanted: Wanted, padding: int | None) -> _Flat:
    """Rows that begin at these offsets, in flat tensors of `size` tokens."""
    ids, positions = torch.zeros(2, size, dtype=torch.long)
    branches = torch.full((size,), -1)
    wanted_places: list[int] = []
    for begin, (prompt, part, common) in zip(begins, rows, strict=True):
        trunk = [*prompt, *(part[0][0][:common] if part else ())]
        after = begin + len(prompt)
        start = first = begin + len(trunk)
        ids[begin:start] = torch.tensor(trunk, dtype=torch.long)
        branches[begin:start] = 0
        positions[begin:start] = torch.arange(len(trunk))
        for k, (tokens, mask) in enumerate(part, 1):
            end = start + len(tokens) - common
            ids[start:end] = torch.tensor(tokens[common:], dtype=torch.long)
            branches[start:end] = k
            positions[start:end] = torch.arange(len(trunk), len(trunk) + end - start)
            places = [*range(after, first), *range(start, end)]
            if wanted == "ending":
                read = [*zip((*range(begin, after), *places), (*prompt, *tokens), strict=True)]
                wanted_places.append(next((place for place, token in reversed(read) if token != padding), begin))
            else:
                wanted_places += compress([after - 1, *places] if wanted == "predicting" else places, mask)
            start = end
    return _Flat(ids, branches, positions, torch.tensor(wanted_places, dtype=torch.long))


def tree_mask(rows: Layout, dtype: torch.dtype, window: int | None = None) -> Tensor:
    """[N, 1, L, L], added to attention scores: 0 where a token attends to another, otherwise the lowest number of the dtype.

    Additive, because eager attention adds its mask. Padding attends to the prompt and to padding, so no row is empty.

    Args:
        rows: with branches and positions.
        dtype: of the model.
        window: how many tokens back a token attends, itself included; None for all.
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


def single_completions(batch: Batch) -> list[Batch]:
    """Each completion that is present, as a batch of its own."""
    return [
        Batch((batch.prompt_ids[b],), batch.completion_ids[b, k][None, None], batch.mask[b, k][None, None])
        for b, k in batch.present.nonzero().tolist()
    ]


def _groups(batch: Batch, wanted: Wanted) -> list[Group]:
    """Each prompt with its completions that are present."""
    unread = 1 if wanted == "predicting" else 0
    if unread and not all(batch.prompt_ids):
        raise ValueError("a prompt without tokens; begin it with the tokenizer's BOS or EOS token")
    lengths = batch.lengths.tolist()
    ids, masks = batch.completion_ids.tolist(), batch.mask.tolist()
    return [
        Group(prompt, [(tokens[: n - unread], mask[:n]) for tokens, mask, n in zip(*row, strict=True) if n])
        for prompt, *row in zip(batch.prompt_ids, ids, masks, lengths, strict=True)
    ]


def _divided(group: Group, width: int | None) -> list[Group]:
    """The completions of one prompt, divided into rows such that a decoder of this width computes least.

    A layer spends about 24·H² on a token, and 4·H on each token that it attends to: all L of a shared row, because a tree mask has
    no fast path, half of them in a plain row.
    """

    def cost(row: Group) -> float:
        return row.size * (6 * (width or 0) + row.size / (1 if len(row.completions) > 1 else 2))

    completions = group.completions
    cuts = [
        [_joined(Group(group.prompt, completions[i : i + size])) for i in range(0, len(completions), size)]
        for size in _sizes(len(completions), width)
    ]
    return min(cuts, key=lambda rows: sum(map(cost, rows)))


def _sizes(count: int, width: int | None) -> list[int]:
    """Numbers of completions in a row that are tried: 1, 2, 4, … and all."""
    return [1] if width is None else sorted({2**i for i in range(count.bit_length())} | {max(count, 1)})
