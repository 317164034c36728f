"""From the runs of a study to its report."""

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from prefopt.comparison import Result, compare
from prefopt.controls import claim, confounds
from prefopt.errors import PrefoptError
from prefopt.report import show
from prefopt.report import write_report as write_page
from prefopt.study.spec import Study

__all__ = ["Result", "write_report"]


def write_report(study: Study, folder: Path, results: Sequence[Result], console: Console) -> None:
    """Compare all runs; write page and tables; print the table, the verdict, what it rests on, and every confound."""
    try:
        comparison = compare(
            list(results),
            question=study.question,
            baseline=study.reference_arm,
            metric=study.metric,
            better=study.better,
            measure=study.measure,
            paired=study.paired,
            confounds=confounds(results, study.reference_arm, study.varies),
            notes=[claim(results)],
        )
    except PrefoptError as error:  # the runs are done, and what they say is on disk
        console.print(f"no comparison: {error}", style="red", highlight=False, markup=False)
        return
    page = write_page(comparison, folder)
    show(console, comparison)
    console.print(f"\nreport    {page}", highlight=False, soft_wrap=True)
    console.print("          table.md · table.tex · results.csv, beside it", highlight=False)
