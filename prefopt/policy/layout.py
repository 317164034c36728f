"""How a batch of prompts × completions becomes rows of tokens for a model.

A plain row is `prompt | y`. A shared row is `prompt | y_1 | … | y_K`: the prompt is computed once, and every completion sees the
prompt and itself, at the positions that it would have alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

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
    """

    input_ids: Tensor
    attention_mask: Tensor
    predicts: Tensor
    last: Tensor
    branches: Tensor | None = None
    positions: Tensor | None = None

    def predicting(self, states: Tensor) -> Tensor:
        """[M, …], the states that predict tokens, of [N, L, …]."""
        return states.flatten(0, 1)[self.predicts]

    def to(self, device: torch.device) -> "Rows":
        """The same rows on `device`."""
        moved: dict[str, Any] = {
            name: None if value is None else value.to(device) for name, value in vars(self).items()
        }
        return Rows(**moved)

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
    sequences = [[*prompt, *(token for tokens, _ in part for token in tokens)] for prompt, part in rows] or [[0]]
    longest = max(map(len, sequences))
    branches = torch.full((len(sequences), longest), batch.mask.shape[1] + 1)
    positions = torch.zeros(len(sequences), longest, dtype=torch.long)
    predicts: list[int] = []
    for row, (prompt, part) in enumerate(rows):
        size = start = len(prompt)
        branches[row, :size] = 0
        positions[row, :size] = torch.arange(size)
        for k, (tokens, mask) in enumerate(part, 1):
            end = start + len(tokens)
            branches[row, start:end] = k
            positions[row, start:end] = torch.arange(size, size + len(tokens))
            before = row * longest + start - 1
            if mask[0]:
                predicts.append(row * longest + size - 1)
            predicts += [before + t for t in range(1, len(mask)) if mask[t]]
            start = end
    last = torch.tensor([len(sequence) - 1 for sequence in sequences])
    shared = any(len(part) > 1 for _, part in rows)
    found = Rows(
        input_ids=torch.tensor([[*sequence, *[0] * (longest - len(sequence))] for sequence in sequences]),
        attention_mask=(torch.arange(longest) <= last[:, None]).long(),
        predicts=torch.tensor(predicts, dtype=torch.long),
        last=last,
        branches=branches if shared else None,
        positions=positions if shared else None,
    )
    return found.to(device)


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


Written = tuple[list[int], list[bool]]
"""A completion's tokens, up to the last that is to be predicted, and which of them are."""


def _groups(batch: Batch) -> list[tuple[tuple[int, ...], list[Written]]]:
    """Each prompt with the completions that are present."""
    if not all(batch.prompt_ids):
        raise ValueError("a prompt without tokens; begin it with the tokenizer's BOS or EOS token")
    after = torch.arange(1, batch.mask.shape[2] + 1, device=batch.mask.device)
    lengths = (batch.mask * after).amax(-1).tolist() if len(after) else batch.mask.sum(-1).tolist()
    ids, masks = batch.completion_ids.tolist(), batch.mask.tolist()
    return [
        (prompt, [(tokens[:n], mask[:n]) for tokens, mask, n in zip(*row, strict=True) if n])
        for prompt, *row in zip(batch.prompt_ids, ids, masks, lengths, strict=True)
    ]


def _parts(prompt: int, written: Sequence[Written], width: int | None) -> list[Sequence[Written]]:
    """The completions of one prompt, cut into rows so that a decoder of this width has the least to do.

    A layer spends about 24·H² on a token, and 4·H on each token that it looks at: all L of a shared row, because a tree mask has
    no fast path, half of them in a plain row.
    """

    def cost(part: Sequence[Written]) -> float:
        length = prompt + sum(len(tokens) for tokens, _ in part)
        return length * (6 * (width or 0) + length / (1 if len(part) > 1 else 2))

    cuts = [[written[i : i + size] for i in range(0, len(written), size)] for size in _sizes(len(written), width)]
    return min(cuts, key=lambda parts: sum(map(cost, parts)))


def _sizes(completions: int, width: int | None) -> list[int]:
    """Completions in a row: 1, 2, 4, … and all."""
    return [1] if width is None else sorted({2**i for i in range(completions.bit_length())} | {max(completions, 1)})
