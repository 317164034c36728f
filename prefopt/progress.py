"""What a person sees of a run: its data, a bar while it trains, its results. Lines now and then where there is no terminal."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from prefopt.data.tokenising import Report
    from prefopt.labelling import LabelResult
    from prefopt.runs import RunResult
    from prefopt.support.caches import Kept
    from prefopt.support.profile import Clock, Section
    from prefopt.training.loop import Step
    from prefopt.types import Estimate

Item = TypeVar("Item")

WIDE = 110
"""Columns from which results have the room to show every interval."""


def show_data(console: Console, name: str, report: "Report") -> None:
    """A line on one part of the data, and one for each thing that was dropped or cut."""
    (prompt, prompt_most), (completion, completion_most) = report.prompt_tokens, report.completion_tokens
    rows = f"{report.kept}" if report.kept == report.examples else f"{report.kept} of {report.examples}"
    lengths = f"prompts {prompt} (≤ {prompt_most}), completions {completion} (≤ {completion_most}) tokens"
    console.print(f"  {name:<11}{rows:>6} rows · {lengths if report.kept else 'none'}", highlight=False)
    for what, count in sorted(report.counts.items()):
        show_count(console, count, what)


def show_count(console: Console, count: int, what: str) -> None:
    """Something that was dropped, cut or kept, and how often."""
    console.print(f"  {'':<11}{count:>6} {what}", style="yellow", highlight=False)


def show_example(console: Console, example: Text, lines: int = 16) -> None:
    """One row as the model sees it; the middle of a long one is left out."""
    wrapped = list(example.wrap(console, max(console.width - 2, 20)))
    while wrapped and not wrapped[-1].plain.strip():
        wrapped.pop()
    if len(wrapped) > lines + 2:
        gap = Text(f"… {len(wrapped) - lines} lines …", style="dim italic")
        wrapped = [*wrapped[: lines // 2], gap, *wrapped[-lines // 2 :]]
    console.print(Text("first training row; ⟦what the loss counts⟧", style="dim"))
    for line in wrapped:
        console.print(Text("  ") + line, soft_wrap=True)


def shown(steps: "Iterable[Step]", total: int, console: Console, done: int = 0) -> "Iterator[Step]":
    """The same steps, with loss, reward margin, tokens/s and time left shown as they pass.

    Args:
        steps: a trainer.
        total: how many there will be.
        console: where to show them.
        done: steps that a resumed run has behind it.
    """
    yield from followed(steps, total, console, "step", lambda step: (step.number, _numbers(step)), done)


def followed(
    items: Iterable[Item],
    total: int,
    console: Console,
    word: str,
    told: Callable[[Item], tuple[int, str]],
    done: int = 0,
) -> Iterator[Item]:
    """The same items, shown as they pass, with the time left.

    Args:
        items: what is done, piece by piece.
        total: how much there will be.
        console: where to show it; one that is no terminal gets about ten plain lines instead of a bar.
        word: what is counted.
        told: how much is done with an item, and what is to be said then.
        done: how much was done before.
    """
    if not total:  # nothing to follow: a run that is measured and not trained
        yield from items
        return
    if not console.is_terminal:
        next_line = (done * 10 // total + 1) * total / 10
        for item in items:
            number, words = told(item)
            if number == total or number >= next_line:
                next_line = (number * 10 // total + 1) * total / 10
                console.print(f"{word} {number}/{total} · {words}", highlight=False, soft_wrap=True)
            yield item
        return
    columns = (
        BarColumn(bar_width=max(8, min(30, console.width - 70))),
        MofNCompleteColumn(),
        TextColumn("{task.fields[numbers]}"),
        TimeRemainingColumn(compact=True),
        TextColumn("left"),
    )
    with Progress(*columns, console=console) as progress:
        task = progress.add_task(word, total=total, completed=done, numbers="")
        for item in items:
            number, words = told(item)
            progress.update(task, completed=number, numbers=words)
            yield item


def show_validation(console: Console, step: int, estimates: "Mapping[str, Estimate]") -> None:
    """A line, above the bar, on an evaluation in the middle of a run."""
    numbers = [
        f"{name} {_number(estimates[name].value)}" for name in ("gold", "accuracy", "nll", "kl") if name in estimates
    ]
    console.print(f"validation at step {step}: {' · '.join(numbers)}", highlight=False, soft_wrap=True)


def show_limit(console: Console, step: int, what: str) -> None:
    """A line, above the bar, on a metric that has left its bounds."""
    console.print(f"step {step}: {what}", style="bold yellow", highlight=False, soft_wrap=True)


def _numbers(step: "Step") -> str:
    parts = [f"loss {step.metrics['loss']:.4f}"]
    watched = {name: step.metrics.get(f"rollouts/{name}") for name in ("reward", "kl")}
    parts += [f"{name} {value:+.3f}" for name, value in watched.items() if value is not None]
    if "rewards/margin" in step.metrics:
        parts.append(f"margin {step.metrics['rewards/margin']:+.3f}")
    return " · ".join([*parts, f"{step.tokens / max(step.seconds, 1e-9):,.0f} tokens/s"])


def show_result(console: Console, result: "RunResult", rows: int, confidence: float) -> None:
    """What changed on held-out rows, and where the rest is."""
    if result.after:
        console.print(_table(result, rows, confidence, console.width >= WIDE))
        hint = f"Change: after − before, paired by prompt; bold where its {confidence:.0%} interval excludes 0."
        half = " ± is half of an interval." * (console.width < WIDE)
        console.print(Text(f"{hint}{half} Each metric: docs/metrics.md.", style="dim"))
    else:
        console.print("no held-out rows, so nothing was measured (source.split, source.test)")
    console.print(f"\nresults   {result.folder}/", highlight=False, soft_wrap=True)
    console.print("          summary.json · metrics.jsonl · evaluations/ with samples · policy/", highlight=False)
    if result.writes:
        console.print(f"try it    prefopt sample {result.folder}", highlight=False, soft_wrap=True)


def _table(result: "RunResult", rows: int, confidence: float, wide: bool) -> Table:
    table = Table(
        title=f"{rows} held-out rows (test)", title_justify="left", box=None, pad_edge=False, padding=(0, 2, 0, 0)
    )
    for heading in ("metric", "before", "after"):
        table.add_column(heading, justify="left", no_wrap=True)
    table.add_column(f"change [{confidence:.0%} interval]", no_wrap=True)
    for name in sorted(result.after, key=lambda name: name != "gold"):  # the reward that counts comes first
        before, change = result.before.get(name), result.change.get(name)
        sure = change is not None and not change.low <= 0 <= change.high and change.low == change.low
        table.add_row(
            name,
            _estimate(before, wide),
            _estimate(result.after[name], wide),
            Text(interval(change, signed=True), style="bold" if sure else ""),
        )
    for name, (old, new) in result.numbers.items():
        table.add_row(name, _number(old), _number(new), _number(new - old, signed=True))
    return table


def _estimate(e: "Estimate | None", wide: bool) -> str:
    if e is None:
        return ""
    if wide:
        return interval(e)
    return _number(e.value) + (f" ±{_number((e.high - e.low) / 2)}" if e.low == e.low else "")


def interval(e: "Estimate | None", signed: bool = False) -> str:
    """`value [low, high]`, as rich text sees it when it is not markup."""
    if e is None:
        return ""
    ends = f" [{_number(e.low, signed)}, {_number(e.high, signed)}]" if e.low == e.low else ""
    return _number(e.value, signed) + ends


def _number(value: float, signed: bool = False) -> str:
    """Three decimals, fewer for large numbers; never a negative zero."""
    decimals = 3 if abs(value) < 100 else 1
    value = round(value, decimals) + 0.0
    return f"{value:{'+' if signed and value else ''}.{decimals}f}"


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
        table.add_row(name, _number(value), "")
    console.print(table)


def show_labelling(spent: Mapping[str, float]) -> str:
    """What has been used so far, in words."""
    return " · ".join(f"{value:,.0f} {name.replace('_', ' ')}" for name, value in spent.items()) or "no cost"


def show_labelled(console: Console, result: "LabelResult") -> None:
    """What a labelling came to, and how to train on it."""
    for name, count in result.counts.items():
        console.print(f"{count:>9,} {name.replace('_', ' ')}", highlight=False)
    console.print(f"{'spent':>9} {show_labelling(result.spent)}", highlight=False)
    console.print(f"\ndata      {result.data}", highlight=False, soft_wrap=True)
    console.print(f"train     prefopt run RECIPE source.data={result.data}", highlight=False, soft_wrap=True)


def show_kept(console: Console, found: "Sequence[Kept]") -> None:
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


def show_profile(console: Console, clock: "Clock") -> None:
    """Where the time went, what went through models meanwhile, and how much of that was no padding."""
    table = Table(title="where the time went", title_justify="left", box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("", no_wrap=True)
    for heading in ("seconds", "share", "tokens/s", "useful"):
        table.add_column(heading, justify="right", no_wrap=True)
    for path, section in _nested(clock):
        speed = f"{section.useful / section.seconds:,.0f}" if section.useful and section.seconds else ""
        useful = f"{section.useful / section.computed:.0%}" if section.computed else ""
        name, share = "  " * (len(path) - 1) + path[-1], section.seconds / max(clock.seconds, 1e-9)
        table.add_row(name, f"{section.seconds:.2f}", f"{share:.0%}", speed, useful)
    rest = clock.seconds - sum(section.seconds for path, section in clock.sections.items() if len(path) == 1)
    table.add_row("the rest", f"{rest:.2f}", f"{rest / max(clock.seconds, 1e-9):.0%}", "", "")
    table.add_row("all", f"{clock.seconds:.2f}", "", "", "", style="bold")
    console.print(table)
    console.print(Text("tokens/s: of what is no padding (useful).", style="dim"))


def _nested(clock: "Clock") -> "Iterator[tuple[tuple[str, ...], Section]]":
    """Sections, each followed by those in it, in the order in which they began."""
    places = {path: number for number, path in enumerate(clock.sections)}
    for path in sorted(places, key=lambda path: [places[path[: depth + 1]] for depth in range(len(path))]):
        yield path, clock.sections[path]
