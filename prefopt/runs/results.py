"""What a person sees at the end: results, labels, caches, and where the time went."""

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

from prefopt.runs.progress import in_decimals, show_labelling

if TYPE_CHECKING:
    from prefopt.runs.label import LabelResult
    from prefopt.runs.listing import ListedRun
    from prefopt.runs.run import RunResult
    from prefopt.support.caches import CacheUsage
    from prefopt.support.profile import Clock, Section
    from prefopt.support.threads import PhaseThreads
    from prefopt.types import Estimate


WIDE = 110
"""Columns from which results have the room to show every interval."""


def show_result(console: Console, result: "RunResult", confidence: float) -> None:
    """What changed on held-out rows, and where the rest is."""
    if result.after:
        console.print(_table(result, confidence, console.width >= WIDE))
        hint = f"Change: after − before, paired by prompt; bold where its {confidence:.0%} interval excludes 0."
        half = " ± is half of an interval, ≥ and ≤ its other end." * (console.width < WIDE)
        alike = any(e.low != e.low and e.prompts > 1 for e in (*result.before.values(), *result.after.values()))
        none = " No interval: all prompts say the same." * alike
        console.print(Text(f"{hint}{half}{none} Each metric: docs/metrics.md.", style="dim"))
    else:
        console.print("no held-out rows, so nothing was measured (source.split, source.test)")
    console.print(f"\nresults   {result.folder}/", highlight=False, soft_wrap=True)
    console.print("          summary.json · metrics.jsonl · evaluations/ with samples · policy/", highlight=False)
    if result.writes:
        console.print(f"try it    prefopt sample {result.folder}", highlight=False, soft_wrap=True)


def _table(result: "RunResult", confidence: float, wide: bool) -> Table:
    table = Table(
        title=_title(result),
        title_justify="left",
        box=None,
        pad_edge=False,
        padding=(0, 2, 0, 0),
    )
    for heading in ("metric", "before", "after", f"change [{confidence:.0%} interval]"):
        table.add_column(heading, overflow="fold")  # in a narrow terminal a number goes on below, and is never cut
    for name in sorted(result.after, key=_place):
        before, change = result.before.get(name), result.change.get(name)
        sure = change is not None and not change.low <= 0 <= change.high and change.low == change.low
        table.add_row(
            name,
            _estimate(before, wide),
            _estimate(result.after[name], wide),
            Text(interval(change, signed=True), style="bold" if sure else ""),
        )
    for name, (old, new) in result.numbers.items():
        table.add_row(name, in_decimals(old), in_decimals(new), in_decimals(new - old, signed=True))
    return table


def _title(result: "RunResult") -> str:
    """How many rows there are of each part, and of how many prompts the samples are, where these are not as many."""
    rows = {result.part: result.rows, **result.sets}
    names = {part: "length" if part == result.part else f"{part}/length" for part in rows}
    prompts = {part: result.after[name].prompts for part, name in names.items() if name in result.after}
    title = f"{result.rows} held-out rows ({result.part})" + "".join(f", {n} ({s})" for s, n in result.sets.items())
    if any(rows[part] != number for part, number in prompts.items()):
        several = [f"{number} ({part})" if result.sets else str(number) for part, number in prompts.items()]
        title += f"; samples of {', '.join(several)} prompts"
    return title


def _place(name: str) -> tuple[bool, str, bool]:
    """Metrics of the part first, then of each set; in each the reward that counts comes first."""
    of_set, _, metric = name.rpartition("/")
    return bool(of_set), of_set, metric.partition("[")[0] != "gold"


def _estimate(e: "Estimate | None", wide: bool) -> str:
    if e is None:
        return ""
    if wide:
        return interval(e)
    if e.value in (e.low, e.high):  # 1.000 ≥0.897, of 34 of 34
        return (
            f"{in_decimals(e.value)} ≥{in_decimals(e.low)}"
            if e.value == e.high
            else f"{in_decimals(e.value)} ≤{in_decimals(e.high)}"
        )
    return in_decimals(e.value) + (f" ±{in_decimals((e.high - e.low) / 2)}" if e.low == e.low else "")


def interval(e: "Estimate | None", signed: bool = False) -> str:
    """`value [low, high]`, as rich text sees it when it is not markup."""
    if e is None:
        return ""
    ends = f" [{in_decimals(e.low, signed)}, {in_decimals(e.high, signed)}]" if e.low == e.low else ""
    return in_decimals(e.value, signed) + ends


def show_evaluation(
    console: Console, title: str, estimates: "Mapping[str, Estimate]", numbers: Mapping[str, float]
) -> None:
    """The table of one evaluation."""
    table = Table(title=title, title_justify="left", box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for heading in ("metric", "estimate", "prompts"):
        table.add_column(heading, no_wrap=True)
    for name, e in estimates.items():
        table.add_row(name, Text(interval(e)), str(e.prompts))
    for name, value in numbers.items():
        table.add_row(name, in_decimals(value), "")
    console.print(table)


def show_labelled(console: Console, result: "LabelResult") -> None:
    """What a labelling came to, and how to train on it."""
    for name, count in result.counts.items():
        console.print(f"{count:>9,} {name.replace('_', ' ')}", highlight=False)
    console.print(f"{'spent':>9} {show_labelling(result.spent)}", highlight=False)
    if not result.labelled:
        return
    console.print(f"\ndata      {result.data}", highlight=False, soft_wrap=True)
    console.print(f"train     prefopt run RECIPE source.data={result.data}", highlight=False, soft_wrap=True)


def show_runs(console: Console, folder: Path, runs: "Sequence[ListedRun]") -> None:
    """A line for each run below a folder, and how the first that is not over goes on."""
    if not runs:
        console.print(f"no run in {folder}/ or below it", highlight=False, soft_wrap=True)
        return
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("run", overflow="fold")
    for heading, justify in (("state", "left"), ("step", "right"), ("result", "left")):
        table.add_column(heading, justify=justify, no_wrap=True)  # type: ignore[arg-type]
    if wide := console.width >= WIDE:
        table.add_column("objective", overflow="fold")
        table.add_column("begun (UTC)", no_wrap=True)
    for run in runs:
        steps = f"{run.step}/{run.steps}" if run.steps is not None and run.step < run.steps else str(run.step)
        state = Text(run.state, style="" if run.state == "finished" else "yellow")
        more = (Text(run.objective), run.begun) if wide else ()
        table.add_row(Text(str(run.folder.relative_to(folder))), state, steps, run.result, *more)
    console.print(table)
    if go_on := next((run.go_on for run in runs if run.go_on), ""):
        console.print(f"\nto go on  {go_on}", highlight=False, soft_wrap=True)
    if diverged := next((run for run in runs if run.advice), None):
        console.print(f"\ndiverged  {diverged.folder}: {diverged.advice}", highlight=False, soft_wrap=True)


def show_kept(console: Console, found: "Sequence[CacheUsage]") -> None:
    """What is kept on disk between runs."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for heading, justify in (("kind", "left"), ("entries", "right"), ("size", "right"), ("last used", "left")):
        table.add_column(heading, justify=justify, no_wrap=True)  # type: ignore[arg-type]
    table.add_column("of", overflow="fold")
    for one in found:
        doubts = [f"{one.damaged} damaged"] * bool(one.damaged) + [f"{size(one.torn)} half-written"] * bool(one.torn)
        used = datetime.fromtimestamp(one.used).strftime("%Y-%m-%d %H:%M")
        table.add_row(
            one.kind, f"{one.entries:,}", size(one.bytes), used, ", ".join([*doubts, one.of or one.folder.name])
        )
    console.print(table)


def size(count: float) -> str:
    """Bytes, in three digits or so."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"


def show_profile(console: Console, clock: "Clock", threads: "PhaseThreads | None" = None) -> None:
    """Where the time went, how many cores worked, what went through models meanwhile, and how much of that was no padding."""
    table = Table(title="where the time went", title_justify="left", box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("", no_wrap=True)
    for heading in ("seconds", "share", "cores", "tokens/s", "useful"):
        table.add_column(heading, justify="right", no_wrap=True)
    for path, section in _nested(clock):
        speed = f"{section.useful / section.seconds:,.0f}" if section.useful and section.seconds else ""
        useful = f"{section.useful / section.computed:.0%}" if section.computed else ""
        name, share = "  " * (len(path) - 1) + path[-1], section.seconds / max(clock.seconds, 1e-9)
        table.add_row(name, f"{section.seconds:.2f}", f"{share:.0%}", _cores(section), speed, useful)
    rest = clock.seconds * (1 - clock.explained)
    table.add_row("the rest", f"{rest:.2f}", f"{1 - clock.explained:.0%}", "", "", "")
    table.add_row("all", f"{clock.seconds:.2f}", "", _cores(clock), "", "", style="bold")
    console.print(table)
    cores = "cores: processor seconds of all threads for each second, those that wait awake included"
    console.print(Text(f"{cores}; tokens/s: of what is no padding (useful).", style="dim"))
    spent = f"{clock.explained:.0%} of the time is explained; {clock.processor:.1f} processor seconds"
    console.print(Text(f"{spent}; {threads.in_words()}" if threads is not None else spent))


def _cores(section: "Section | Clock") -> str:
    return f"{section.processor / section.seconds:.1f}" if section.seconds >= 0.05 else ""


def _nested(clock: "Clock") -> "Iterator[tuple[tuple[str, ...], Section]]":
    """Sections, each followed by those in it, in the order in which they began."""
    places = {path: number for number, path in enumerate(clock.sections)}
    for path in sorted(places, key=lambda path: [places[path[: depth + 1]] for depth in range(len(path))]):
        yield path, clock.sections[path]
