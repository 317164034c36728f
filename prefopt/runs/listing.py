"""Which runs and labellings there are below a folder, and how far each has come."""

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
    """A run, or a labelling, in the words of a list.

    Attributes:
        folder: its run folder.
        state: finished, running, stopped, trained (its last evaluation is missing), diverged, unfinished, failed, or damaged.
        objective: names and weights of its terms, as in `DPO + 0.1 SFT`; of a labelling, whose labels they are.
        seed: of the run; None where its recipe does not say.
        step: the last one; of a labelling, the prompts that are done.
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
            yield _labelling(run) if run.labels else _listed(run)


def _labelling(run: RunFolder) -> ListedRun:
    try:
        recipe, manifest = run.recipe_tree(), run.manifest()
    except PrefoptError:
        return ListedRun(run.path, "damaged")
    files = [file for name in ("data.jsonl", "missing.jsonl") if (file := run.path / name).is_file()]
    done = sum(file.read_bytes().count(b"\n") for file in files)
    over, study = "finished" in manifest, _study_of(run.path)
    state = "finished" if over else "running" if is_locked(run.path) else "unfinished"
    feedback, data = recipe.get("feedback"), manifest.get("data")
    name = feedback.get("name") if isinstance(feedback, Mapping) else feedback
    rows = data.get("rows") if isinstance(data, Mapping) else None
    counts = manifest.get("counts")
    labelled = counts.get("prompts") if isinstance(counts, Mapping) else None
    own = f"prefopt label {run.recipe_file} --out {run.path}"
    return ListedRun(
        run.path,
        state,
        f"labels of {name}",
        manifest.get("seed") if isinstance(manifest.get("seed"), int) else None,
        done,
        rows if isinstance(rows, int) else None,
        f"{labelled} prompts labelled" if over and labelled is not None else "",
        str(manifest.get("started", ""))[:16].replace("T", " "),
        go_on=_go_on(own, study) if state == "unfinished" else "",
    )


def _study_of(folder: Path) -> Path | None:
    return next((above for above in folder.parents if (above / "study.yaml").is_file()), None)


def _go_on(own: str, study: Path | None) -> str:
    """The command that goes on: its own, or that of the study it is in; none where a process works on that."""
    if study is None:
        return own
    return "" if is_locked(study) else f"prefopt study {study / 'study.yaml'} --out {study}"


def _listed(run: RunFolder) -> ListedRun:
    try:
        record = read_run(RunOfArm("", 0, run.path))
    except PrefoptError:
        return ListedRun(run.path, "damaged")
    train, seed = record.recipe.get("train"), record.recipe.get("seed")
    diverged = run.diverged and record.state == "unfinished"
    steps = train.get("steps") if isinstance(train, Mapping) else None
    state: str = "trained" if run.trained else "diverged" if diverged else record.state
    study = _study_of(run.path)
    if state != "finished" and is_locked(run.path):
        state = "running"
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
        _go_on(f"prefopt run {run.path} --resume", study) if state in ("unfinished", "trained") else "",
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
