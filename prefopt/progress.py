"""What a person sees while a run trains: a bar on a terminal, a line now and then elsewhere."""

from collections.abc import Iterable, Iterator

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from prefopt.train import Step


def shown(steps: Iterable[Step], total: int, console: Console, done: int = 0) -> Iterator[Step]:
    """The same steps, with loss, reward margin, tokens/s and time left shown as they pass.

    Args:
        steps: a trainer.
        total: how many there will be.
        console: where to show them; one that is no terminal gets about ten plain lines instead of a bar.
        done: steps that a resumed run has behind it.
    """
    if not console.is_terminal:
        for step in steps:
            if step.number == total or step.number % max(1, total // 10) == 0:
                console.print(f"step {step.number}/{total} · {_numbers(step)}", highlight=False)
            yield step
        return
    columns = (
        TextColumn("training"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TextColumn("{task.fields[numbers]}"),
        TimeRemainingColumn(compact=True),
        TextColumn("left"),
    )
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("train", total=total, completed=done, numbers="")
        for step in steps:
            progress.update(task, completed=step.number, numbers=_numbers(step))
            yield step


def _numbers(step: Step) -> str:
    parts = [f"loss {step.metrics['loss']:.4f}"]
    if "rewards/margin" in step.metrics:
        parts.append(f"margin {step.metrics['rewards/margin']:+.3f}")
    return " · ".join([*parts, f"{step.tokens / max(step.seconds, 1e-9):,.0f} tokens/s"])
