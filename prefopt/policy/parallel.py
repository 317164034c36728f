"""Sharding the rows of a logical batch over processes and micro-batches, and gathering the results.

Every process holds the whole batch (token ids are small), forwards its own rows of it, and gathers the small outputs.
"""

from collections.abc import Callable, Hashable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor
from torch.nn.functional import pad

from prefopt.support.errors import PrefoptError
from prefopt.support.profile import timed
from prefopt.support.sending import sent
from prefopt.support.threads import phase
from prefopt.types import Batch, Model, Needs, Outputs, Sampled, Sampler, lengths_of

Key = TypeVar("Key", bound=Hashable)
T = TypeVar("T")

ROUNDING = 1e-3
"""By which arithmetic may put a log-prob above 0."""


@dataclass(frozen=True)
class MicroBatch:
    """Rows that go through the model together.

    Attributes:
        rows: their numbers in the batch, [b] int64.
        filler: it repeats a row whose results are thrown away. A process that has run out of rows gets such micro-batches, so
            that all processes take the same number of forward passes: sharded models communicate in each.
    """

    rows: Tensor
    filler: bool = False


class Shards:
    """Which process takes which rows of a batch, and in which micro-batches.

    Rows of similar length go together, because they need the least padding, and the longest come first: then memory peaks at
    the start, and a model that compares its layouts on longer and longer rows (`Trunk`) has done so. The batch itself keeps
    its order.

    Args:
        lengths: of each row, in tokens.
        size: rows in a micro-batch, at most; memory and speed only.
        accelerator: knows the processes.
        tokens: in a micro-batch, at most, padding included, unless one row alone has more; None for any number.

    Attributes:
        micro_batches: of this process.
        rows: the numbers of the rows of each process, in the order of its micro-batches.
        padding: share of the places in all micro-batches that hold no token.
    """

    def __init__(self, lengths: Sequence[int], size: int, accelerator: Accelerator, tokens: int | None = None):
        self.accelerator = accelerator
        world = accelerator.num_processes
        longest_first = sorted(range(len(lengths)), key=lengths.__getitem__, reverse=True)
        by_process = [cut(longest_first[rank::world], lengths, size, tokens) for rank in range(world)]
        self.rows = [torch.tensor([row for rows in cut for row in rows], dtype=torch.long) for cut in by_process]
        own = [MicroBatch(torch.tensor(rows, dtype=torch.long)) for rows in by_process[accelerator.process_index]]
        number = max(1, *map(len, by_process))
        filler = MicroBatch(torch.zeros(1, dtype=torch.long), filler=True)
        self.micro_batches = own + [filler] * (number - len(own))
        places = sum(len(rows) * max(lengths[row] for row in rows) for cut in by_process for rows in cut)
        self.padding = 1 - sum(lengths) / places if places else 0.0

    @property
    def split(self) -> bool:
        """Whether the batch goes through the model in more than one micro-batch, over all processes."""
        return len(self.micro_batches) > 1 or self.accelerator.num_processes > 1

    def gather(self, values: Sequence[Tensor]) -> Tensor:
        """Results of every process's micro-batches, [b, ...] each, as [B, ...] on every process, in the order of the batch."""
        own = [v[:0] if micro.filler else v for v, micro in zip(values, self.micro_batches, strict=True)]
        value = torch.cat(own)
        if self.accelerator.num_processes > 1:
            most = len(self.rows[0])
            padding = value.new_zeros(most - len(value), *value.shape[1:])
            gathered: Any = self.accelerator.gather(torch.cat([value, padding]).contiguous())
            parts = zip(gathered.split(most), self.rows, strict=True)
            value = torch.cat([part[: len(rows)] for part, rows in parts])
        return value[sent(torch.cat(self.rows).argsort(), value.device)]

    def gather_each(self, values: Sequence[Mapping[Key, Tensor]]) -> dict[Key, Tensor]:
        """The same for mappings, whose keys and their order must be equal on all processes."""
        return {key: self.gather([value[key] for value in values]) for key in values[0]}


def cut(longest_first: Sequence[int], lengths: Sequence[int], size: int, tokens: int | None) -> list[list[int]]:
    """Rows in order of their lengths cut into micro-batches; within one they are in the order of the batch.

    So a batch of one micro-batch is the batch itself, and policy and reference round alike whether or not it was sharded.
    """
    cut: list[list[int]] = []
    for row in longest_first:
        full = not cut or len(cut[-1]) == size
        if full or (tokens is not None and (len(cut[-1]) + 1) * lengths[cut[-1][0]] > tokens):
            cut.append([])
        cut[-1].append(row)
    return [sorted(rows) for rows in cut]


def shard(batch: Batch, size: int, accelerator: Accelerator, tokens: int | None = None) -> Shards:
    """The rows of a batch, by the tokens of each prompt with all of its completions."""
    completions = batch.lengths.sum(-1).tolist()
    lengths = [len(prompt) + number for prompt, number in zip(batch.prompt_ids, completions, strict=True)]
    return Shards(lengths, size, accelerator, tokens)


@torch.no_grad()
def forward(
    model: Model, batch: Batch, needs: Needs, size: int, accelerator: Accelerator, tokens: int | None = None
) -> Outputs:
    """A model's outputs for the whole batch, on every process, without gradient.

    Args:
        model: any.
        batch: the same on every process.
        needs: what is asked of the model.
        size: prompts in a micro-batch, at most; memory and speed only.
        accelerator: knows the processes.
        tokens: in a micro-batch, at most; likewise.
    """
    shards = shard(batch, size, accelerator, tokens)
    # A reference is not prepared by accelerate, and must do the policy's arithmetic.
    with phase("scoring"), accelerator.autocast():
        parts = [model(batch.rows(micro.rows), needs) for micro in shards.micro_batches]

    whole = Outputs(sent(batch.mask, parts[0].mask.device))
    return whole.with_fields(shards.gather_each([part.fields() for part in parts]))


def draw(
    sampler: Sampler,
    model: Any,
    prompt_ids: Sequence[Sequence[int]],
    completions: int,
    settings: Any,
    seeds: Tensor,
    accelerator: Accelerator,
    pool: Executor | None = None,
) -> Callable[[], Sampled]:
    """Begin to draw completions of all prompts, by all processes together.

    Args:
        sampler: what draws.
        model: from what.
        prompt_ids: B prompts.
        completions: K of each.
        settings: the recipe's `sampling`.
        seeds: [B] int64, of each prompt's noise.
        accelerator: knows the processes.
        pool: threads in which this process's part is drawn meanwhile; None draws it at once.

    Returns:
        What waits for them, for all processes to call: the same on every process, on the CPU. It raises a `PrefoptError` where the
        sampler returned something else than K completions of each prompt, or what no model can have written.
    """
    shards = Shards([len(prompt) for prompt in prompt_ids], len(prompt_ids), accelerator)
    rows = shards.micro_batches[0].rows
    given = (model, [prompt_ids[row] for row in rows.tolist()], completions, settings, seeds[rows])
    with timed("sampling"):
        own = partial(_same, sampler(*given)) if pool is None else pool.submit(sampler, *given).result

    def drawn() -> Sampled:
        with timed("sampling"):
            sampled = own()
        check_sampled(sampled, type(sampler).__name__, len(rows), completions)
        if (longest := max(sampled.lengths.flatten().tolist(), default=0)) > settings.max_tokens:
            raise PrefoptError(
                f"the sampler {type(sampler).__name__} drew {longest} tokens, and sampling.max_tokens is {settings.max_tokens}"
            )
        return _gathered(sampled, shards, settings.max_tokens)

    return drawn


def _same(value: T) -> T:
    return value


def _gathered(sampled: Sampled, shards: Shards, most: int) -> Sampled:
    """What the processes drew, as one, with as many tokens as the longest has."""

    def whole(value: Tensor) -> Tensor:
        """Processes gather on their devices, and all to one width."""
        return shards.gather([pad(value, (0, most - value.shape[-1])).to(shards.accelerator.device)]).cpu()

    mask = whole(sampled.mask)
    width = int(lengths_of(mask).max()) if mask.numel() else 0
    logps = None if sampled.logps is None else whole(sampled.logps)[..., :width]
    return Sampled(whole(sampled.completion_ids)[..., :width], mask[..., :width], logps)


def gathered_objects(accelerator: Accelerator, call: Callable[[], T]) -> list[T]:
    """What a call returns on each process, on every process; no two of them communicate within it.

    Raises:
        PrefoptError: on every process, for the others would wait for ever.
    """
    if accelerator.num_processes == 1:
        return [call()]
    result, error = None, ""
    try:
        result = call()
    except PrefoptError as raised:
        error = str(raised)
    outcomes: Any = gather_object([(result, error)])
    if errors := [error for _, error in outcomes if error]:
        raise PrefoptError(errors[0])
    return [result for result, _ in outcomes]


def check_sampled(sampled: Any, name: str, prompts: int, completions: int) -> None:
    """Refuse what a sampler of a user's returned, if it is of another kind or shape."""
    if not isinstance(sampled, Sampled):
        raise PrefoptError(
            f"the sampler {name} returned a {type(sampled).__name__}, not prefopt.Sampled(completion_ids, mask, logps)"
        )
    expected = [prompts, completions]
    for field in ("completion_ids", "mask", "logps"):
        value = getattr(sampled, field)
        if value is None and field == "logps":
            continue
        if not isinstance(value, Tensor) or value.ndim != 3 or list(value.shape[:2]) != expected:
            shape = list(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise PrefoptError(
                f"the sampler {name} returned {field} of shape {shape} for {prompts} prompts × {completions} completions; "
                f"expected [{prompts}, {completions}, tokens]"
            )
    if sampled.mask.dtype != torch.bool or sampled.mask.shape != sampled.completion_ids.shape:
        raise PrefoptError(f"the sampler {name} returned a mask that is not bool of the shape of its completion_ids")
    if sampled.logps is None:
        return
    if sampled.logps.shape != sampled.mask.shape:
        raise PrefoptError(f"the sampler {name} returned logps that are not of the shape of its completion_ids")
    logps = sampled.logps[sampled.mask]
    if len(wrong := logps[~(logps.isfinite() & (logps <= ROUNDING))]):
        raise PrefoptError(
            f"the sampler {name} returned a log-prob of {wrong[0]:g}, and every one is finite and at most 0; where it has none, "
            "`logps` is None. Weights of a training that diverged (train.lr too high) give nan"
        )
