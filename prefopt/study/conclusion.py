"""From the runs of a study to the comparison that it has declared, and to its report."""

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from prefopt.runs.records import RunOfArm, read_run
from prefopt.study.comparison.compare import compare
from prefopt.study.comparison.comparison import AT_KL, USUAL_TABLE, Comparison, PaperTable
from prefopt.study.comparison.confounds import confounds, seeds_note
from prefopt.study.report import show, write_report
from prefopt.study.spec import Study
from prefopt.support.errors import PrefoptError, nearest


def declared_comparison(
    study: Study,
    results: Sequence[RunOfArm],
    baseline: str | None = None,
    metric: str | None = None,
    against: str | None = None,
    paper: PaperTable = USUAL_TABLE,
) -> Comparison:
    """The comparison that a study has declared, with a note on its seeds and every confound.

    Args:
        study: what was declared.
        results: its runs.
        baseline: another than the study's.
        metric: another than the study's; the report says that it was chosen after the runs.
        against: another than the study's, likewise; or an arm, which is then the baseline.
        paper: how table.tex is printed.

    Raises:
        PrefoptError: the runs cannot be compared.
    """
    arms = list(study.all_arms())
    if against in arms and baseline is None:
        against, baseline = "baseline", against
    base = baseline or study.reference_arm
    results = sorted(results, key=lambda r: arms.index(r.arm) if r.arm in arms else len(arms))
    notes = [seeds_note(results)]
    if metric not in (None, study.metric):
        notes.append(
            f"{metric} was chosen after the runs; the study declared {study.primary_metric}. This comparison is exploratory"
        )
    if against not in (None, study.against):
        notes.append(
            f"the study declared comparisons against: {study.against}; these are against: {against}, chosen after the runs"
        )
    notes += _unmeasured(study.measure, results)
    return compare(
        list(results),
        question=study.question,
        baseline=base,
        against=against or study.against,
        paper=paper,
        metric=metric or study.primary_metric,
        better=study.better,
        measure=study.measure,
        paired=study.paired,
        confounds=confounds(results, base, study.varies),
        notes=notes,
    )


def _unmeasured(measure: Sequence[str], results: Sequence[RunOfArm]) -> list[str]:
    """A note on further metrics that were asked for and that no run has."""
    known = {name for result in results for name in read_run(result).after}
    missing = [name for name in measure if name.removesuffix(AT_KL) not in known]
    return [f"no run has measured {name!r}, which `measure` asks for.{nearest(name, known)}" for name in missing]


def conclude(study: Study, folder: Path, results: Sequence[RunOfArm], console: Console) -> Comparison | None:
    """Compare all runs, write and print the report; None, with a message, where they cannot be compared."""
    try:
        comparison = declared_comparison(study, results)
    except PrefoptError as error:  # the runs have ended, and their results are on disk
        console.print(f"no comparison: {error}", style="red", highlight=False, markup=False)
        return None
    write_and_show(comparison, folder, console)
    return comparison


def write_and_show(comparison: Comparison, folder: Path, console: Console) -> None:
    """Write the page and the tables into the folder; print the table, the verdict, and the notes."""
    page = write_report(comparison, folder)
    show(console, comparison)
    console.print(f"\nreport    {page}", highlight=False, markup=False, soft_wrap=True)
    console.print("          beside it: table.tex, methods.tex, references.bib, results.json, …", highlight=False)
