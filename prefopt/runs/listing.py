"""Which runs there are below a folder, and how far each has come."""

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prefopt.runs.folder import RunFolder
from prefopt.runs.records import RunOfArm, RunRecord, read_run, usual_metric
from prefopt.support.errors import PrefoptError
from prefopt.support.files import is_locked

PARTS_OF_RUNS = ("policy", "best", "earlier", "checkpoints", "evaluations", "wandb", "tensorboard")
"""Folders in run folders, which hold no further runs."""


@dataclass(frozen=True)
class ListedRun:
    """A run, in the words of a list.

    Attributes:
        folder: its run folder.
        state: finished, running, stopped, trained (its last evaluation is missing), diverged, unfinished, failed, or damaged.
        objective: names and weights of its terms, as in `DPO + 0.1 SFT`.
        seed: of the run; None where its recipe does not say.
        step: the last one.
        steps: planned; None where the recipe has epochs.
        result: the metric that a comparison of it would decide by, as in `gold 0.169`; with the step whose policy
            is kept, where that is the best, and where the run was extended; empty where nothing was measured at the end.
        advice: what helps where a resume would not: of a run that diverged.
        begun: day and time, as in `2026-11-29 13:45`; empty where no manifest says so.
        go_on: the command with which it goes on; empty where it is over, or a process works on it or its study.
    """

    folder: Path
    state: str
    objective: str = ""
    seed: int | None = None
    step: int = 0
    steps: int | None = None
    result: str = ""
    begun: str = ""
    advice: str = ""
    go_on: str = ""


def listed_runs(folder: Path) -> Iterator[ListedRun]:
    """The runs in a folder and below it, in the order of their paths.

    Raises:
        PrefoptError: there is no such folder.
    """
    if not folder.is_dir():
        raise PrefoptError(f"there is no folder {folder}: name one that holds runs, or run something first")
    for place, below, _ in os.walk(folder):
        below[:] = sorted(name for name in below if name not in PARTS_OF_RUNS)
        run = RunFolder(Path(place))
        if run.failed or (run.begun and (run.metrics_file.exists() or run.manifest_file.exists())):
            yield _listed(run)


def _listed(run: RunFolder) -> ListedRun:
    try:
        record = read_run(RunOfArm("", 0, run.path))
    except PrefoptError:
        return ListedRun(run.path, "damaged")
    train, seed = record.recipe.get("train"), record.recipe.get("seed")
    diverged = run.diverged and record.state == "unfinished"
    steps = train.get("steps") if isinstance(train, Mapping) else None
    state: str = "trained" if run.trained else "diverged" if diverged else record.state
    study = next((above for above in run.path.parents if (above / "study.yaml").is_file()), None)
    if state != "finished" and is_locked(run.path):
        state = "running"
    go_on = (
        f"prefopt run {run.path} --resume" if study is None else f"prefopt study {study / 'study.yaml'} --out {study}"
    )
    waits = state in ("unfinished", "trained") and not (study is not None and is_locked(study))
    return ListedRun(
        run.path,
        state,
        _objectives(record),
        seed if isinstance(seed, int) else None,
        int(max((line["step"] for line in record.history), default=0)),
        steps if isinstance(steps, int) else None,
        _result(record, run.summary()),
        str(record.manifest.get("started", ""))[:16].replace("T", " "),
        _after_divergence(run, train) if state == "diverged" else "",
        go_on if waits else "",
    )


def _after_divergence(run: RunFolder, train: Any) -> str:
    lr = train.get("lr") if isinstance(train, Mapping) else None
    smaller = f"{lr / 3:.1g}" if isinstance(lr, int | float) else "…"
    return (
        f"a resume has the same settings and would diverge again; begin anew with a smaller train.lr (or with train.clip_norm, "
        f"train.warmup): prefopt run {run.recipe_file} train.lr={smaller}"
    )


def _objectives(record: RunRecord) -> str:
    terms = record.recipe.get("objective") or ()
    every = [terms] if isinstance(terms, str | Mapping) else terms
    return " + ".join(_term(term if isinstance(term, Mapping) else {"name": term}) for term in every)


def _term(term: Mapping[str, Any]) -> str:
    weight = term.get("weight", 1)
    return str(term.get("name")) if weight == 1 else f"{weight} {term.get('name')}"


def _result(record: RunRecord, summary: Mapping[str, Any]) -> str:
    if not record.after:
        return ""
    evaluate = record.recipe.get("evaluate")
    own = list(evaluate.get("metrics") or ()) if isinstance(evaluate, Mapping) else []
    metric = usual_metric([list(record.after)], own)
    chosen = [f"step {summary['chosen']['step']} kept"] if summary.get("chosen") else []
    notes = [*chosen, *(f"extended at {one['from']}" for one in summary.get("extended", ()))]
    return f"{metric} {record.after[metric]:.3f}" + (f" ({', '.join(notes)})" if notes else "")
