"""Dealing the rows of a logical batch to processes and micro-batches, and putting the results together again.

Every process holds the whole batch (token ids are small), forwards its own part of it, and gathers the small outputs.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor
from torch.nn.functional import pad

from prefopt.support.profile import timed
from prefopt.types import Batch, Model, Needs, Outputs, Sampled, Sampler


@dataclass(frozen=True)
class Piece:
    """Rows that go through the model together.

    Attributes:
        rows: their numbers in the batch, [b] int64.
        filler: a process that has run out of rows repeats one, for nothing, so that all processes take the same number of
            forward passes: sharded models communicate in each.
    """

    rows: Tensor
    filler: bool = False


class Deal:
    """Which process takes which rows of a batch, and in which micro-batches.

    Rows of like length go together, because they pad each other least, and the longest come first: memory is at its peak at
    once, and a model whose rows are compared as they get longer (`Trunk`) has it behind it. The batch itself keeps its order.

    Args:
        lengths: of each row, in tokens.
        size: rows in a micro-batch, at most; memory and speed only.
        accelerator: knows the processes.
        tokens: in a micro-batch, at most, padding included, unless one row alone has more; None for any number.

    Attributes:
        padding: share of the places in all micro-batches that hold no token.
    """

    def __init__(self, lengths: Sequence[int], size: int, accelerator: Accelerator, tokens: int | None = None):
        self.accelerator = accelerator
        world = accelerator.num_processes
        ranked = sorted(range(len(lengths)), key=lengths.__getitem__, reverse=True)
        cut = [_cut(ranked[rank::world], lengths, size, tokens) for rank in range(world)]
        self.shares = [torch.tensor([row for rows in share for row in rows], dtype=torch.long) for share in cut]
        own = [Piece(torch.tensor(rows, dtype=torch.long)) for rows in cut[accelerator.process_index]]
        number = max(1, *map(len, cut))
        self.pieces = own + [Piece(torch.zeros(1, dtype=torch.long), filler=True)] * (number - len(own))
        places = sum(len(rows) * max(lengths[row] for row in rows) for share in cut for rows in share)
        self.padding = 1 - sum(lengths) / places if places else 0.0

    @property
    def split(self) -> bool:
        """Whether the batch goes through the model in more than one piece."""
        return len(self.pieces) > 1 or self.accelerator.num_processes > 1

    def gather(self, values: Sequence[Tensor]) -> Tensor:
        """What every process found for its pieces, [b, ...] each, as [B, ...] on every process, in the order of the batch."""
        own = [v[:0] if piece.filler else v for v, piece in zip(values, self.pieces, strict=True)]
        value = torch.cat(own)
        if self.accelerator.num_processes > 1:
            most = len(self.shares[0])
            padding = value.new_zeros(most - len(value), *value.shape[1:])
            gathered: Any = self.accelerator.gather(torch.cat([value, padding]).contiguous())
            parts = zip(gathered.split(most), self.shares, strict=True)
            value = torch.cat([part[: len(share)] for part, share in parts])
        return value[torch.cat(self.shares).argsort().to(value.device)]

    def gather_each(self, values: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
        """The like for mappings with the same keys everywhere."""
        return {key: self.gather([value[key] for value in values]) for key in values[0]}


def _cut(ranked: Sequence[int], lengths: Sequence[int], size: int, tokens: int | None) -> list[list[int]]:
    """Rows in order of their lengths, the longest first, cut into micro-batches; within one they are in the batch's order.

    So a batch of one piece is the batch itself, and policy and reference round alike whether or not it was dealt.
    """
    pieces: list[list[int]] = []
    for row in ranked:
        full = not pieces or len(pieces[-1]) == size
        if full or (tokens is not None and (len(pieces[-1]) + 1) * lengths[pieces[-1][0]] > tokens):
            pieces.append([])
        pieces[-1].append(row)
    return [sorted(piece) for piece in pieces]


def deal(batch: Batch, size: int, accelerator: Accelerator, tokens: int | None = None) -> Deal:
    """The rows of a batch, by the tokens of each prompt with all of its completions."""
    written = batch.mask.sum((1, 2)).tolist()
    lengths = [len(prompt) + number for prompt, number in zip(batch.prompt_ids, written, strict=True)]
    return Deal(lengths, size, accelerator, tokens)


@torch.no_grad()
def forward(
    model: Model, batch: Batch, needs: Needs, size: int, accelerator: Accelerator, tokens: int | None = None
) -> Outputs:
    """What a model says about the whole batch, on every process, without gradient.

    Args:
        model: any.
        batch: the same on every process.
        needs: what is asked of the model.
        size: prompts in a micro-batch, at most; memory and speed only.
        accelerator: knows the processes.
        tokens: in a micro-batch, at most; likewise.
    """
    dealt = deal(batch, size, accelerator, tokens)
    with accelerator.autocast():  # a reference is not prepared by accelerate, and must do the policy's arithmetic
        parts = [model(batch.rows(piece.rows), needs) for piece in dealt.pieces]

    whole = Outputs(batch.mask.to(parts[0].mask.device))
    return whole.with_fields(dealt.gather_each([part.fields() for part in parts]))


def draw(
    sampler: Sampler,
    model: Any,
    prompt_ids: Sequence[Sequence[int]],
    completions: int,
    settings: Any,
    seeds: Tensor,
    accelerator: Accelerator,
) -> Sampled:
    """Completions of all prompts, drawn by all processes together; the same on every process, on the CPU.

    Args:
        sampler: what draws.
        model: from what.
        prompt_ids: B prompts.
        completions: K of each.
        settings: the recipe's `sampling`.
        seeds: [B] int64, of each prompt's noise.
        accelerator: knows the processes.
    """
    dealt = Deal([len(prompt) for prompt in prompt_ids], len(prompt_ids), accelerator)
    rows = dealt.pieces[0].rows
    with timed("sampling"):
        drawn = sampler(model, [prompt_ids[row] for row in rows.tolist()], completions, settings, seeds[rows])

    def whole(value: Tensor) -> Tensor:
        """Processes gather on their devices, and all to one width."""
        return dealt.gather([pad(value, (0, settings.max_tokens - value.shape[-1])).to(accelerator.device)]).cpu()

    mask = whole(drawn.mask)
    width = int(mask.sum(-1).max()) if mask.numel() else 0
    logps = None if drawn.logps is None else whole(drawn.logps)[..., :width]
    return Sampled(whole(drawn.completion_ids)[..., :width], mask[..., :width], logps)
