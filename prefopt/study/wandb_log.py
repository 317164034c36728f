"""Logs the comparison of a study to W&B: as one run beside those of the arms, in their group."""

import math
from collections.abc import Iterator, Sequence
from typing import Any

from prefopt.runs.records import RunOfArm, RunRecord, read_runs
from prefopt.study.comparison.comparison import AT_KL, Comparison
from prefopt.study.plan import StudyPlan
from prefopt.study.report.figures import figures
from prefopt.support.logs import silence_telemetry
from prefopt.training.trackers import WandbRun

FILES = (
    "report.html",
    "table.md",
    "table.tex",
    "results.csv",
    "results.json",
    "methods.tex",
    "references.bib",
    "study.yaml",
)
"""Files of the study's folder that go into the artifact; those that are missing are left out."""


def log_comparison(planned: StudyPlan, results: Sequence[RunOfArm], comparison: Comparison | None) -> None:
    """Log the table of all runs, the frontier, the figures and the report, if the study is logged to W&B."""
    settings = planned.arms()[0].recipe.track.wandb
    if settings is None:
        return
    silence_telemetry()
    as_comparison = settings.model_copy(update={"name": "comparison"})
    run = WandbRun(as_comparison, planned.folder, "comparison", planned.study.model_dump(mode="json"))
    runs = read_runs(results)
    tables = {
        "comparison": [_row(one) for one in runs],
        "frontier": list(_frontier(runs, planned.study.primary_metric.removesuffix(AT_KL))),
    }
    drawn = {} if comparison is None else {f.name: text for f in figures(comparison) if (text := f.svg())}
    run.attach(tables, drawn, [file for name in FILES if (file := planned.folder / name).exists()])
    run.finish({"runs": len(runs), "failed": sum(not one.after for one in runs), "finished": True})


def _row(run: RunRecord) -> dict[str, Any]:
    """A row of the table of runs: held-out metrics at the end, and costs."""
    after = {name: None if math.isnan(value) else value for name, value in run.after.items()}
    return {"arm": run.arm, "seed": run.seed, "failed": not run.after, **after, **run.costs}


def _frontier(runs: Sequence[RunRecord], metric: str) -> Iterator[dict[str, Any]]:
    """KL and the metric at every evaluation of every run that ended with numbers."""
    for run in (run for run in runs if run.after):
        for line in run.history:
            for part in ("test", "validation"):
                if line.get(f"{part}/kl") is not None and line.get(f"{part}/{metric}") is not None:
                    point = {"kl": line[f"{part}/kl"], metric: line[f"{part}/{metric}"], "on": part}
                    yield {"arm": run.arm, "seed": run.seed, "step": line["step"], **point}
