"""What a recipe would do, said before anything is downloaded or loaded."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

from rich.console import Console

from prefopt import recipe
from prefopt.policy import load_tokenizer
from prefopt.runs.memory import Part, estimate_memory, peak
from prefopt.runs.micro_batches import largest, most
from prefopt.runs.planning import Plan, plan
from prefopt.runs.quantising import check_adapter_trained
from prefopt.runs.tokens import with_tokens
from prefopt.support.downloads import Downloads, is_awaited, noting_downloads
from prefopt.support.terminal import Terminal
from prefopt.support.wording import counted, left
from prefopt.training.devices import launched_processes

GB, MB = 1e9, 1e6


@dataclass(frozen=True)
class Batching:
    """How a logical batch is cut.

    Attributes:
        prompts: of a logical batch, over all processes.
        completions: of each prompt, at most.
        minibatch: prompts of an optimiser step, over all processes.
        updates: optimiser steps on each logical batch.
        processes: as `accelerate launch` says in WORLD_SIZE.
        micro: prompts in one forward pass of a process.
        tokens: of the longest prompt with one completion.
    """

    prompts: int
    completions: int
    minibatch: int
    updates: int
    processes: int
    micro: int
    tokens: int

    @property
    def share(self) -> int:
        """Prompts of a minibatch that one process has, at most."""
        return math.ceil(self.minibatch / self.processes)

    @property
    def step_tokens(self) -> int:
        """Tokens of a logical batch, at most; the prompt counts with each completion."""
        return self.prompts * self.completions * self.tokens


@dataclass(frozen=True)
class DryRun:
    """A recipe that was checked as far as it can be without a network.

    Attributes:
        plan: with the rows that are on disk.
        batching: of its batches.
        memory: of each process.
        downloads: what is not on disk; its rows and configurations are not checked.
    """

    plan: Plan
    batching: Batching
    memory: list[Part]
    downloads: Downloads


def dry_run(settings: recipe.Recipe, console: Console | None = None) -> DryRun:
    """Check a recipe, asking nobody.

    Args:
        settings: the recipe.
        console: where the data are shown as a run shows them; None shows nothing.

    Raises:
        PrefoptError: as `plan`, except for hub ids that are not on disk.
    """
    with noting_downloads() as downloads:
        planned = plan(settings)
        check_adapter_trained(settings)
        if downloads.data or is_awaited(planned.model):
            batching = batching_of(planned)
            prompt = settings.source.max_prompt_tokens
            micro = most(planned, batching.completions, prompt, batching.tokens - prompt)
        else:
            tokens = with_tokens(planned, load_tokenizer(settings.policy), console or Terminal(quiet=True))
            planned = tokens.plan
            batching = batching_of(planned)
            micro = largest(planned, tokens.train, batching.completions)
        return DryRun(planned, batching, estimate_memory(planned, micro), downloads)


def batching_of(planned: Plan) -> Batching:
    """The sizes of a run's batches."""
    train, source = planned.recipe.train, planned.recipe.source
    minibatch = train.minibatch_size or train.batch_size
    longest = source.max_completion_tokens
    if source.rollouts is not None:
        completions = source.rollouts.completions
        longest, _ = recipe.most_tokens(source.rollouts.sampling, source.rollouts.environment)
    else:
        completions = planned.needs.completions or max((row.size for row in planned.data.train), default=1)
    return Batching(
        train.batch_size,
        completions + len(source.writers),
        minibatch,
        train.passes * train.batch_size // minibatch,
        launched_processes(),
        train.micro_batch_size,
        source.max_prompt_tokens + longest,
    )


def describe_dry_run(checked: DryRun) -> Iterator[str]:
    """The lines that people read."""
    yield _steps(checked)
    yield from checked.plan.notes
    b = checked.batching
    each = "1 completion" if b.completions == 1 else f"{b.completions} completions"
    updates = f"{b.updates} optimiser step{'s' * (b.updates > 1)} of {b.minibatch}"
    yield f"batch: {b.prompts} prompts × {each}, {updates}; at most {b.step_tokens:,} tokens a batch"
    rows = min(b.micro, b.share)
    yield (
        f"each of {b.processes} process{'es' * (b.processes > 1)}: {b.share} prompts of an optimiser step, in "
        f"{math.ceil(b.share / b.micro)} × {rows} (at most {rows * b.completions * b.tokens:,} tokens a forward pass)"
    )
    yield "memory of each process, estimated:"
    width = max(len(part.what) for part in checked.memory)
    known = peak(checked.memory)
    unit, name = (GB, "GB") if known >= GB / 10 else (MB, "MB")
    for part in checked.memory:
        size = "      ?" if part.size is None else f"{part.size / unit:z7.2f}"
        yield f"  {part.what:<{width}} {size} {name}  {part.formula}".rstrip()
    unknown = any(part.size is None for part in checked.memory)
    yield f"  {'at least' if unknown else 'in all':<{width}} {known / unit:7.2f} {name}  and what the libraries take for themselves"
    yield from _downloads(checked.downloads)
    yield from (f"warning: {warning}" for warning in checked.plan.warnings)


def _steps(checked: DryRun) -> str:
    """How long it is, and of what."""
    train = checked.plan.recipe.train
    kept = checked.plan.left
    counts = ", ".join(
        f"{left(kept.get(name, len(rows)), len(rows))} {name}" for name, rows in checked.plan.parts.items()
    )
    if not checked.downloads.data:
        return f"{counted(checked.plan.steps, 'steps')} on {checked.plan.model}; rows: {counts}"
    steps = f"{train.steps} steps" if train.steps is not None else f"{train.epochs:g} × rows ÷ {train.batch_size} steps"
    return f"{steps} on {checked.plan.model}; rows: not known before they are there"


def _downloads(downloads: Downloads) -> Iterator[str]:
    if not downloads.models and not downloads.data:
        yield "nothing to download"
        return
    yield "would be downloaded (whether the hub has it, and how large it is, was not asked):"
    yield from (f"  model {name}" for name in downloads.models)
    yield from (f"  data set {name}" for name in downloads.data)
    yield "not checked until it is there: " + ", ".join(
        [*["configurations", "vocabularies"] * bool(downloads.models), *["rows"] * bool(downloads.data)]
    )
