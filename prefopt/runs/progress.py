"""What a person sees of a run: its data, a bar while it trains, its results. Lines now and then where there is no terminal."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from rich.console import Console
from rich.padding import Padding
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

from prefopt.support.wording import counted, left

if TYPE_CHECKING:
    from prefopt.data.tokenised import Report
    from prefopt.runs.planning import Plan
    from prefopt.training.loop import Step
    from prefopt.types import Estimate

Item = TypeVar("Item")


def show_heading(console: Console, plan: "Plan") -> None:
    """The run in two lines: what it minimises, for how long, on which model; and what its data were read as."""
    objectives = " + ".join(str(objective) for objective in plan.objectives)
    size = f"{plan.steps} steps of {plan.recipe.train.batch_size} prompts"
    console.print(Text.assemble((plan.recipe.name, "bold"), f" · {objectives} · {size}"))
    console.print(f"  model {plan.model}", highlight=False, soft_wrap=True, markup=False)
    show_notes(console, plan.notes)
    show_warnings(console, plan.warnings)


def show_notes(console: Console, notes: Iterable[str]) -> None:
    """A line for each thing that was done to the data while they were read."""
    for note in notes:
        console.print(f"  {note}", highlight=False, soft_wrap=True, markup=False)


def show_warnings(console: Console, warnings: Iterable[str]) -> None:
    """A line for each thing that can be and is hardly meant; a terminal breaks it between words, a file keeps it whole."""
    for warning in warnings:
        text = Text(f"warning: {warning}", style="yellow")
        if console.is_terminal:
            console.print(Padding(text, (0, 0, 0, 2)))
        else:
            console.print(Text("  ") + text, soft_wrap=True)


def show_data(console: Console, name: str, report: "Report") -> None:
    """A line on one part of the data, and one for each thing that was dropped or cut."""
    (prompt, prompt_most), (completion, completion_most) = report.prompt_tokens, report.completion_tokens
    lengths = f"prompts {prompt} (≤ {prompt_most}), completions {completion} (≤ {completion_most}) tokens"
    console.print(
        f"  {name:<11}{left(report.kept, report.examples):>6} rows · {lengths if report.kept else 'none'}",
        highlight=False,
    )
    show_counts(console, dict(sorted(report.counts.items())))


def show_left(console: Console, rows: int, steps: int) -> None:
    """How many rows an epoch has, and steps the run, where some were dropped."""
    several = "s" * (steps != 1)
    console.print(
        f"  {'an epoch':<11}{rows:>6} rows, which are left to train on: {steps} step{several}", highlight=False
    )


def show_counts(console: Console, counts: Mapping[str, int]) -> None:
    """A line for each thing that was dropped, cut or kept, and how often."""
    for what, count in counts.items():
        if count:
            number, _, words = counted(count, what).partition(" ")
            console.print(f"  {'':<11}{number:>6} {words}", style="yellow", highlight=False)


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
        TextColumn("{task.fields[numbers]}", markup=False),
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
        f"{name} {in_decimals(estimates[name].value)}"
        for name in ("gold", "accuracy", "nll", "kl")
        if name in estimates
    ]
    console.print(f"validation at step {step}: {' · '.join(numbers)}", highlight=False, soft_wrap=True)


def show_limit(console: Console, step: int, what: str) -> None:
    """A line, above the bar, on a metric that has left its bounds."""
    console.print(f"step {step}: {what}", style="bold yellow", highlight=False, soft_wrap=True)


def show_chosen(console: Console, chosen: Mapping[str, Any], done: int) -> None:
    """A line on which policy is the result, where one was chosen."""
    if chosen:
        which = "the last one" if chosen["step"] == done else f"that of step {chosen['step']} of {done}"
        what = f"{chosen['metric']} {in_decimals(chosen['value'])} on validation rows"
        console.print(f"the best policy is {which}: {what}", highlight=False, markup=False, soft_wrap=True)


def _numbers(step: "Step") -> str:
    loss = step.metrics["loss"]
    parts = [f"loss {loss:.4f}" if loss == loss else "nothing to learn from"]
    watched = {name: step.metrics.get(f"rollouts/{name}") for name in ("reward", "kl")}
    parts += [f"{name} {value:+.3f}" for name, value in watched.items() if value is not None]
    if "rewards/margin" in step.metrics:
        parts.append(f"margin {step.metrics['rewards/margin']:+.3f}")
    return " · ".join([*parts, f"{step.tokens / max(step.seconds, 1e-9):,.0f} tokens/s"])


def show_labelling(spent: Mapping[str, float]) -> str:
    """What has been used so far, in words."""
    return " · ".join(f"{value:,.0f} {name.replace('_', ' ')}" for name, value in spent.items()) or "no cost"


def in_decimals(value: float, signed: bool = False) -> str:
    """Three decimals, fewer for large numbers; never a negative zero."""
    decimals = 3 if abs(value) < 100 else 1
    value = round(value, decimals) + 0.0
    return f"{value:{'+' if signed and value else ''}.{decimals}f}"
