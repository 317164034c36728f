"""The comparison of a study at W&B: one run beside those of the arms, in their group."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from prefopt.study.comparison.tables import AT_KL, Comparison
from prefopt.study.jobs import Jobs
from prefopt.study.report.figures import draw
from prefopt.study.reporting import Result
from prefopt.support.logs import silence_telemetry
from prefopt.training.trackers import WandbRun

FILES = ("report.html", "table.md", "table.tex", "results.csv", "study.yaml")
"""What goes into the artifact, as far as it is there."""


def log_comparison(planned: Jobs, results: Sequence[Result], comparison: Comparison | None) -> None:
    """Send the table of all runs, the frontier, the figures and the report, if the study is logged to W&B at all."""
    settings = planned.arms()[0].recipe.track.wandb
    if settings is None:
        return
    silence_telemetry()
    named = settings.model_copy(update={"name": "comparison"})
    run = WandbRun(named, planned.folder, "comparison", planned.study.model_dump(mode="json"))
    tables = {
        "comparison": [_row(result) for result in results],
        "frontier": list(_frontier(results, planned.study.metric.removesuffix(AT_KL))),
    }
    figures = {} if comparison is None else {figure.name: figure.svg for figure in draw(comparison)}
    run.attach(tables, figures, [file for name in FILES if (file := planned.folder / name).exists()])
    run.finish({"runs": len(results), "failed": sum(not _summary(r.folder) for r in results), "finished": True})


def _summary(folder: Path) -> dict[str, Any]:
    """Of a finished run; empty of another."""
    file = folder / "summary.json"
    return json.loads(file.read_text()) if file.exists() else {}


def _row(result: Result) -> dict[str, Any]:
    """What a run came to: its held-out metrics at the end, and its costs."""
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
