"""The result of a benchmark as a person reads it."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from prefopt.runs.results import interval

if TYPE_CHECKING:
    from prefopt.evaluation.benchmarks.harness import Tasks
    from prefopt.evaluation.benchmarks.measuring import Measured
    from prefopt.evaluation.benchmarks.scores import ScoreEstimate

NUMBERS = {
    "missing": "rows without a verdict on some answer",
    "ties": "rows in which neither answer was preferred",
    "turned": "pairs in which the same place won in both orders",
    "cut": "rows with a prompt or answer that was cut to the length that the model reads",
}


def show_measured(console: Console, measured: "Measured", made: Mapping[str, Any], name: str) -> None:
    """Overall, sections and their subsets with intervals; then what there is to know of the rows."""
    how = ", ".join(str(made[key]) for key in ("who", "reward") if made.get(key))
    console.print(
        Text.assemble((f"{measured.benchmark}: {name}", "bold"), f" by {made['target']} ({how})"), soft_wrap=True
    )
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("", overflow="fold")
    table.add_column("score", no_wrap=True)
    for heading in ("rows", "prompts"):
        table.add_column(heading, justify="right", no_wrap=True)
    _row(table, "overall", measured.overall, "bold")
    for section, e in measured.sections.items():
        _row(table, section, e)
    further = {subset: e for subset, e in measured.subsets.items() if subset not in measured.sections}
    if further:
        table.add_section()
    for subset, e in further.items():
        _row(table, subset, e, "dim")
    console.print(table)
    for key, what in NUMBERS.items():
        if measured.numbers.get(key):
            console.print(Text(f"{measured.numbers[key]:.1%} {what}", style="yellow"))
    console.print(Text("Intervals of 95% resample prompts: docs/benchmarks.md", style="dim"))


def show_tasks(console: Console, found: "Tasks", made: Mapping[str, Any]) -> None:
    """Every metric of every task with its interval."""
    console.print(Text.assemble((str(made["harness"]), "bold"), f": {made['target']}"), soft_wrap=True)
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for heading in ("metric", "estimate"):
        table.add_column(heading, overflow="fold")
    table.add_column("documents", justify="right", no_wrap=True)
    for metric in found.metrics:
        worse = " (lower is better)" if metric.higher_is_better is False else ""
        table.add_row(Text(metric.name + worse), Text(interval(metric.estimate)), f"{metric.estimate.prompts:,}")
    console.print(table)
    console.print(Text("Intervals of 95% resample documents: docs/benchmarks.md", style="dim"))


def _row(table: Table, name: str, e: "ScoreEstimate", style: str = "") -> None:
    table.add_row(Text(name), Text(interval(e)), f"{e.rows:,}", f"{e.prompts:,}", style=style)
