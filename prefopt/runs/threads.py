"""Which number of CPU threads is fastest for each phase of a run, measured at its start on its own model.

A number more is taken only where it wins clearly, because it costs other processes more than it saves. What was measured is
remembered for an hour, and for as many cores as others use meanwhile: that decides about threads as much as the model does.
"""

import hashlib
import json
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import cycle, islice
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from rich.console import Console

from prefopt import recipe
from prefopt.data import Tokenised
from prefopt.policy import Policy, Scorer, TransformersSampler
from prefopt.policy.configuration import configuration
from prefopt.support.caches import cache_folder
from prefopt.support.files import write_whole
from prefopt.support.profile import timed
from prefopt.support.threads import PHASES, Phase, PhaseThreads, at_threads, busy_elsewhere, usable_cores, use
from prefopt.training.devices import on_main_process
from prefopt.types import Batch, Needs

FRESH = 3600.0
"""Seconds for which a measurement is remembered."""

MARGIN = 0.95
"""Share of the time of fewer threads that more must stay below."""

ROUNDS, BUDGET, HOPELESS = 9, 0.4, 1.5
"""Most measurements of a number; seconds after which a phase has been measured enough, with two of each that is not hopeless: by so
many times behind the best."""

WORK, FEWEST, MOST = 4e9, 32, 1024
"""Parameters × tokens of a batch to measure with, about a sixth of a second on one core; bounds of its tokens."""

LARGE = 5e7
"""Parameters from which training is not measured apart: its products are large, and those of scoring."""

READ, DRAWN = 32, 4
"""Tokens of a prompt to decode after, and tokens to decode, at most."""


@dataclass(frozen=True)
class Shape:
    """What goes through the model at a time, at most.

    Attributes:
        prompts: in a micro-batch.
        completions: of each; 0 is as many as the rows have.
        tokens: of a completion; 0 is as many as the rows have.
        drawn: completions drawn at a time by this process; 0 where it draws none.
        trains: whether there is a backward pass.
    """

    prompts: int
    completions: int = 0
    tokens: int = 0
    drawn: int = 0
    trains: bool = False

    @classmethod
    def of(cls, settings: recipe.Recipe, trains: bool = True) -> "Shape":
        """Of a run, or of an evaluation of its model."""
        evaluate, train, rollouts = settings.evaluate, settings.train, settings.source.rollouts if trains else None
        samples = evaluate.samples if rollouts is None else rollouts
        prompts = min(train.micro_batch_size, train.batch_size) if trains else evaluate.batch_size
        asked = evaluate.prompts if rollouts is None else train.batch_size
        drawn = min(asked * samples.completions, samples.batch_size) if samples.sampler == "transformers" else 0
        if rollouts is None:
            return cls(prompts, drawn=drawn, trains=trains)
        return cls(prompts, rollouts.completions, rollouts.sampling.max_tokens, drawn, trains)

    @classmethod
    def drawing(cls, samples: recipe.Samples, prompts: int) -> "Shape":
        """Of work that draws completions and has them scored."""
        drawn = min(prompts * samples.completions, samples.batch_size) if samples.sampler == "transformers" else 0
        return cls(prompts, samples.completions, samples.sampling.max_tokens, drawn)


def settle_threads(
    asked: int | recipe.Threads | None,
    model: Policy | Scorer,
    rows: Sequence[Tokenised],
    shape: Shape,
    accelerator: Accelerator,
    console: Console,
    begun: Mapping[str, Any] = MappingProxyType({}),
) -> None:
    """Give each phase its number of threads, until `computing` ends; the same on every process.

    Args:
        asked: by the recipe: at most so many, or a number for each phase; None is as many as the process may use.
        model: to measure with; it is left as it was.
        rows: that go through it.
        shape: of what goes through it at a time.
        accelerator: of several processes all measure at once, and the main one's times count.
        console: where it is said.
        begun: the manifest of the run that goes on or is measured, whose numbers are taken; empty of a new one.
    """
    how, on_cpu = "as it began", accelerator.device.type == "cpu"
    with timed("threads"):
        numbers = take_threads(asked, accelerator, begun)
        if numbers is None:
            fixed, cap = _limits(asked)
            numbers, how = replace(PhaseThreads.alike(cap), **fixed), ""
            left = [name for name in PHASES if name not in fixed]
            if on_cpu and cap > 1 and left and rows:
                found, how = _measured(left, cap, model, rows, shape, accelerator)
                numbers = replace(numbers, **{name: getattr(found, name) for name in left})
            use(numbers)
    if on_cpu:
        console.print(f"  threads    {numbers}{f' ({how})' * bool(how)}", highlight=False)


def take_threads(
    asked: int | recipe.Threads | None, accelerator: Accelerator, begun: Mapping[str, Any]
) -> PhaseThreads | None:
    """Give phases the numbers of a manifest, and return them; None where it has none, or recipe or machine now say otherwise."""
    known = on_main_process(accelerator, lambda: _of_manifest(begun, *_limits(asked)))
    if known is not None:
        use(known)
    return known


def _limits(asked: int | recipe.Threads | None) -> tuple[dict[str, int], int]:
    """The phases whose number the recipe gives, and the most that others may have."""
    fixed = asked.fixed if isinstance(asked, recipe.Threads) else {}
    return fixed, min(asked if isinstance(asked, int) else torch.get_num_threads(), usable_cores())


def _of_manifest(begun: Mapping[str, Any], fixed: Mapping[str, int], cap: int) -> PhaseThreads | None:
    device = begun.get("device")
    known = PhaseThreads.of(device.get("threads")) if isinstance(device, Mapping) else None
    if known is None or any(getattr(known, name) != number for name, number in fixed.items()):
        return None
    return known if all(number <= cap for name, number in asdict(known).items() if name not in fixed) else None


def _measured(
    phases: Sequence[Phase],
    cap: int,
    model: Policy | Scorer,
    rows: Sequence[Tokenised],
    shape: Shape,
    accelerator: Accelerator,
) -> tuple[PhaseThreads, str]:
    """The numbers of these phases, and whether they are of now or remembered; a phase that the run has not has that of scoring."""
    batch = typical(model, rows, shape)
    file = cache_folder("threads") / f"{_key(model, batch, shape, (cap, *phases), accelerator)}.json"
    remembered = on_main_process(accelerator, lambda: _remembered(file))
    if remembered is not None:
        return remembered, "measured within the hour"

    def agreed(seconds: float) -> float:
        """The main process's, so that all decide alike and pass through a sharded model as often."""
        return float(broadcast_object_list([seconds])[0]) if accelerator.num_processes > 1 else seconds

    works = works_of(model, batch, shape, accelerator)
    found = {name: fastest(work, cap, agreed) for name, work in works.items() if name in phases}
    measured = replace(PhaseThreads.alike(found.get("scoring", cap)), **found)
    if accelerator.is_main_process:
        about = {"model": type(model.model).__name__, "cap": cap, "at": time.time(), "threads": asdict(measured)}
        file.parent.mkdir(parents=True, exist_ok=True)
        write_whole(file, json.dumps(about, indent=1))
    return measured, "measured"


def _remembered(file: Path) -> PhaseThreads | None:
    """What was measured within the hour; None where nothing was, or the file is damaged."""
    try:
        content = json.loads(file.read_text())
        fresh = 0 <= time.time() - content["at"] < FRESH
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return PhaseThreads.of(content.get("threads")) if fresh else None


def _key(model: Policy | Scorer, batch: Batch, shape: Shape, asked: Any, accelerator: Accelerator) -> str:
    """A hash of what the fastest numbers depend on; sizes in powers of two."""
    completions, longest = batch.completion_ids.shape[1:]
    sizes = [len(batch), max(map(len, batch.prompt_ids)), completions, longest, shape.drawn]
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    content = (
        *(type(model).__name__, configuration(model), next(model.parameters()).dtype, trainable),
        *(accelerator.mixed_precision, accelerator.num_processes, shape.trains, [n.bit_length() for n in sizes]),
        *(_processor(), usable_cores(), busy_elsewhere(), asked, torch.__version__),
    )
    return hashlib.sha256(repr(content).encode()).hexdigest()[:32]


def _processor() -> str:
    """The model of the CPU."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return torch.backends.cpu.get_cpu_capability()
    return next((line for line in lines if line.startswith(("model name", "CPU part"))), "")


def typical(model: Policy | Scorer, rows: Sequence[Tokenised], shape: Shape) -> Batch:
    """A batch as the run has, of the lengths of its rows, cut to what takes a fraction of a second."""
    parameters = sum(p.numel() for p in model.parameters())
    most = int(min(max(WORK / parameters, FEWEST), MOST))
    count = min(shape.prompts, len(rows))
    chosen = [rows[len(rows) * i // count] for i in range(count)]
    prompt = int(statistics.median(len(row.prompt_ids) for row in chosen))
    width = shape.completions or max(1, min(len(row.completion_ids) for row in chosen))
    own = [len(ids) for row in chosen for ids in row.completion_ids]
    tokens = max(1, shape.tokens or int(statistics.median(own or [1])))
    of_row = prompt + width * tokens
    width = max(1, min(width, most // 2))
    share = min(1.0, most / of_row)
    prompt, tokens = max(1, int(prompt * share)), max(1, int(tokens * share))
    chosen = chosen[: max(1, most // of_row)]
    written = [
        list(islice(cycle([*row.prompt_ids, *sum(row.completion_ids, ())] or [0]), prompt + tokens)) for row in chosen
    ]
    own_tokens = torch.tensor([ids[prompt:] for ids in written])
    ids = torch.stack([own_tokens.roll(k, -1) for k in range(width)], 1)  # alike, they would be read once
    return Batch(tuple(tuple(ids[:prompt]) for ids in written), ids, torch.ones_like(ids, dtype=torch.bool))


def works_of(
    model: Policy | Scorer, batch: Batch, shape: Shape, accelerator: Accelerator
) -> dict[Phase, Callable[[], Any]]:
    """What to measure by phase: each leaves the model, its mode and all random states as they were."""
    needs = Needs(rewards=isinstance(model, Scorer))

    def scoring() -> None:
        with torch.no_grad(), accelerator.autocast(), torch.random.fork_rng(devices=[]):
            model(batch, needs)

    def training() -> None:
        was = model.training
        model.train()
        try:
            with torch.random.fork_rng(devices=[]):
                with accelerator.autocast():
                    outputs = model(batch, needs)
                sum(value.sum() for value in outputs.fields().values()).backward()
        finally:
            model.zero_grad(set_to_none=True)
            model.train(was)

    works: dict[Phase, Callable[[], Any]] = {"scoring": scoring}
    if shape.trains and sum(p.numel() for p in model.parameters()) < LARGE:
        works["training"] = training
    if shape.drawn and isinstance(model, Policy) and model.tokenizer is not None:
        works["decoding"] = _decoding(model, batch, shape, accelerator)
    return works


def _decoding(model: Policy, batch: Batch, shape: Shape, accelerator: Accelerator) -> Callable[[], Any]:
    """Drawing a few tokens of as many completions as the run draws at a time."""
    most = max(1, int(WORK / 4 / sum(p.numel() for p in model.parameters())))
    number = max(1, min(shape.drawn, most))
    each = max(1, min(shape.completions or 1, number))
    prompts = list(islice(cycle(prompt[-READ:] for prompt in batch.prompt_ids), max(1, number // each)))
    sampler = TransformersSampler(number, accelerator.autocast)
    sampling, seeds = recipe.Sampling(max_tokens=DRAWN), torch.arange(len(prompts))
    return lambda: sampler(model, prompts, each, sampling, seeds)


def fastest(work: Callable[[], Any], cap: int, agreed: Callable[[float], float] = float) -> int:
    """The least number of threads, of 1, 2, 4, … and `cap`, that no greater one clearly beats, by medians of alternating rounds.

    Args:
        work: to measure.
        cap: most threads.
        agreed: of seconds measured, those that count.
    """
    numbers = sorted({cap, *(2**i for i in range(cap.bit_length()) if 2**i <= cap)})
    times: dict[int, list[float]] = {number: [] for number in numbers}
    with at_threads(1):
        work()  # what comes once: memory, the kernels' choices, a comparison of layouts
    running, spent = list(numbers), 0.0
    for done in range(1, ROUNDS + 1):
        for number in running if done % 2 else reversed(running):
            with at_threads(number):
                began = time.perf_counter()
                work()
                seconds = agreed(time.perf_counter() - began)
            times[number].append(seconds)
            spent += seconds
        # Where cores are busy, each of many parallel regions waits: no second round of what is so far behind, or takes so long.
        best, behind = min(map(min, times.values())), HOPELESS if done > 1 or spent > BUDGET else HOPELESS**3
        running = [number for number in running if min(times[number]) < behind * best]
        if len(running) == 1 or (spent > BUDGET and done > 1):
            break
    median = {number: statistics.median_low(seconds) for number, seconds in times.items()}
    best = numbers[0]
    for number in numbers[1:]:
        if median[number] < MARGIN * median[best]:
            best = number
    return best
