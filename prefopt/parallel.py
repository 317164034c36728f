"""Sharing the rows of a logical batch among processes and micro-batches, and putting the results together again.

Every process holds the whole batch (token ids are small), forwards its own part of it, and gathers the small outputs.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from prefopt.types import Batch, Model, Needs, Outputs


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


def pieces(rows: int, size: int, rank: int = 0, world: int = 1) -> list[Piece]:
    """This process's share of `rows`, in micro-batches of at most `size`; as many as every other process has."""
    number = max(1, math.ceil(math.ceil(rows / world) / size))
    mine = torch.tensor_split(torch.arange(rows), world)[rank].split(size)
    own = [Piece(part) for part in mine if len(part)]
    return own + [Piece(torch.zeros(1, dtype=torch.long), filler=True)] * (number - len(own))


def gather_rows(value: Tensor, rows: int, accelerator: Accelerator) -> Tensor:
    """[own, ...] of every process to [rows, ...] on every process, in the order of the batch; `pieces` dealt them."""
    if accelerator.num_processes == 1:
        return value
    shares = [len(part) for part in torch.tensor_split(torch.arange(rows), accelerator.num_processes)]
    padding = value.new_zeros(max(shares) - len(value), *value.shape[1:])
    gathered: Any = accelerator.gather(torch.cat([value, padding]).contiguous())
    return torch.cat([part[:own] for part, own in zip(gathered.split(max(shares)), shares, strict=True)])


def gather_mapping(values: Sequence[Mapping[str, Tensor]], rows: int, accelerator: Accelerator) -> dict[str, Tensor]:
    """The like for the metrics of this process's micro-batches; all processes have the same keys."""
    if accelerator.num_processes > 1 and not values:
        raise ValueError("a process without a micro-batch")
    return {key: gather_rows(torch.cat([v[key] for v in values]), rows, accelerator) for key in values[0]}


@torch.no_grad()
def forward(model: Model, batch: Batch, needs: Needs, size: int, accelerator: Accelerator) -> Outputs:
    """What a model says about the whole batch, on every process, without gradient.

    Args:
        model: any.
        batch: the same on every process.
        needs: what is asked of the model.
        size: prompts in a micro-batch; memory only.
        accelerator: knows the processes.
    """
    world = accelerator.num_processes
    ranked = sorted(range(len(batch)), key=_lengths(batch).__getitem__)  # rows of like length pad each other least
    order = torch.tensor([row for rank in range(world) for row in ranked[rank::world]])
    batch = batch.rows(order)
    parts = [
        (piece, model(batch.rows(piece.rows), needs))
        for piece in pieces(len(batch), size, accelerator.process_index, world)
    ]
    own = [outputs for piece, outputs in parts if not piece.filler]
    example = parts[0][1]

    def whole(field: Callable[[Outputs], Tensor | None]) -> Tensor | None:
        first = field(example)
        if first is None:
            return None
        mine = [value for outputs in own if (value := field(outputs)) is not None]
        return gather_rows(torch.cat(mine) if mine else first[:0], len(batch), accelerator)

    outputs = Outputs(
        mask=batch.mask.to(example.mask.device),
        logps=whole(lambda o: o.logps),
        values=whole(lambda o: o.values),
        rewards=whole(lambda o: o.rewards),
        statistics={name: whole(lambda o, name=name: o.statistics[name]) for name in example.statistics},  # type: ignore[misc]
    )
    return outputs.rows(order.argsort())


def _lengths(batch: Batch) -> list[int]:
    """Tokens of each prompt with its longest completion."""
    longest = batch.mask.sum(-1).amax(-1).tolist()
    return [len(prompt) + tokens for prompt, tokens in zip(batch.prompt_ids, longest, strict=True)]
