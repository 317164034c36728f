"""From the runs of a study to its report."""

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from prefopt.comparison import Result, compare
from prefopt.controls import claim, confounds
from prefopt.errors import PrefoptError
from prefopt.study.spec import Study

__all__ = ["Result", "write_report"]


def write_report(study: Study, folder: Path, results: Sequence[Result], console: Console) -> None:
    """Compare all runs; print the verdict, what it rests on, and every confound."""
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
        )
    except PrefoptError as error:  # the runs are done, and what they say is on disk
        console.print(f"no comparison: {error}", style="red", highlight=False, markup=False)
        return
    for line in (comparison.verdict, claim(results), *comparison.notes):
        console.print(line, highlight=False, markup=False)
    for line in comparison.confounds:
        console.print(f"confound: {line}", style="yellow", highlight=False, markup=False)
    console.print(f"\nresults   {folder}/", highlight=False, soft_wrap=True)
