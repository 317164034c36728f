"""Logs the comparison of a study to W&B: as one run beside those of the arms, in their group."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from prefopt.runs.records import Result
from prefopt.study.comparison.comparison import AT_KL, Comparison
from prefopt.study.plan import StudyPlan
from prefopt.study.report.figures import draw
from prefopt.support.logs import silence_telemetry
from prefopt.training.trackers import WandbRun

FILES = ("report.html", "table.md", "table.tex", "results.csv", "study.yaml")
"""Files of the study's folder that go into the artifact; those that are missing are left out."""


def log_comparison(planned: StudyPlan, results: Sequence[Result], comparison: Comparison | None) -> None:
    """Log the table of all runs, the frontier, the figures and the report, if the study is logged to W&B."""
    settings = planned.arms()[0].recipe.track.wandb
    if settings is None:
        return
    silence_telemetry()
    as_comparison = settings.model_copy(update={"name": "comparison"})
    run = WandbRun(as_comparison, planned.folder, "comparison", planned.study.model_dump(mode="json"))
    tables = {
        "comparison": [_row(result) for result in results],
        "frontier": list(_frontier(results, planned.study.metric.removesuffix(AT_KL))),
    }
    figures = {} if comparison is None else {figure.name: figure.svg for figure in draw(comparison)}
    run.attach(tables, figures, [file for name in FILES if (file := planned.folder / name).exists()])
    run.finish({"runs": len(results), "failed": sum(not _summary(r.folder) for r in results), "finished": True})


def _summary(folder: Path) -> dict[str, Any]:
    """summary.json of a finished run; empty for another."""
    file = folder / "summary.json"
    return json.loads(file.read_text()) if file.exists() else {}


def _row(result: Result) -> dict[str, Any]:
    """A row of the table of runs: held-out metrics at the end, and costs."""
    summary = _summary(result.folder)
    after = {k: v["value"] if isinstance(v, dict) else v for k, v in summary.get("after", {}).items()}
    return {"arm": result.arm, "seed": result.seed, "failed": not summary, **after, **summary.get("costs", {})}


def _frontier(results: Sequence[Result], metric: str) -> Iterator[dict[str, Any]]:
    """KL and the metric at every evaluation of every run."""
    for result in results:
        file = result.folder / "metrics.jsonl"
        for line in map(json.loads, file.read_text().splitlines() if _summary(result.folder) else ()):
            for part in ("test", "validation"):
                if line.get(f"{part}/kl") is not None and line.get(f"{part}/{metric}") is not None:
                    point = {"kl": line[f"{part}/kl"], metric: line[f"{part}/{metric}"], "on": part}
                    yield {"arm": result.arm, "seed": result.seed, "step": line["step"], **point}
