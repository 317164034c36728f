"""From the runs of a study to its report."""

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from prefopt.study.comparison.compare import Result, compare
from prefopt.study.comparison.confounds import claim, confounds
from prefopt.study.comparison.tables import Comparison
from prefopt.study.report import show
from prefopt.study.report import write_report as write_page
from prefopt.study.spec import Study
from prefopt.support.errors import PrefoptError

__all__ = ["Result", "write_report"]


def compared(
    study: Study, results: Sequence[Result], baseline: str | None = None, metric: str | None = None
) -> Comparison:
    """The comparison that a study has declared, with what it rests on and every confound.

    Args:
        study: what was declared.
        results: its runs.
        baseline: another than the study's.
        metric: another than the study's; the report says that it was chosen afterwards.

    Raises:
        PrefoptError: the runs cannot be compared.
    """
    base, arms = baseline or study.reference_arm, list(study.all_arms())
    results = sorted(results, key=lambda r: arms.index(r.arm) if r.arm in arms else len(arms))
    notes = [claim(results)]
    if metric not in (None, study.metric):
        notes.append(
            f"{metric} was chosen after the runs; the study declared {study.metric}. What is said here is exploratory"
        )
    return compare(
        list(results),
        question=study.question,
        baseline=base,
        metric=metric or study.metric,
        better=study.better,
        measure=study.measure,
        paired=study.paired,
        confounds=confounds(results, base, study.varies),
        notes=notes,
    )


def write_report(study: Study, folder: Path, results: Sequence[Result], console: Console) -> Comparison | None:
    """Compare all runs; write page and tables; print the table, the verdict, what it rests on, and every confound."""
    try:
        comparison = compared(study, results)
    except PrefoptError as error:  # the runs are done, and what they say is on disk
        console.print(f"no comparison: {error}", style="red", highlight=False, markup=False)
        return None
    put_down(comparison, folder, console)
    return comparison


def put_down(comparison: Comparison, folder: Path, console: Console) -> None:
    """Page and tables into the folder, table and verdict to the console."""
    page = write_page(comparison, folder)
    show(console, comparison)
    console.print(f"\nreport    {page}", highlight=False, markup=False, soft_wrap=True)
    console.print("          table.md · table.tex · results.csv, beside it", highlight=False)
