"""The preview of a study (`--dry-run`): its jobs, the differences between arms, and an estimate of the time."""

import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from prefopt.objectives import load_objective
from prefopt.recipe import Recipe
from prefopt.recipe.flat import flat, short_value, within
from prefopt.runs.folder import RunFolder
from prefopt.study.comparison.confounds import IMMATERIAL, as_evaluated
from prefopt.study.jobs import Job, RunJob
from prefopt.study.plan import StudyPlan
from prefopt.study.run import waits_for_stage
from prefopt.study.tuning import all_trials, settings_of, tuned_arms
from prefopt.support.durations import rough_duration
from prefopt.support.profile import profiling
from prefopt.support.terminal import Terminal

STEPS, PROMPTS = 2, 32
"""Of a rehearsal: the number of steps, of which the second is timed because the first one warms up; and at most how many held-out
prompts and rows."""


def show_plan(planned: StudyPlan, jobs: int, console: Console, timed: bool) -> None:
    """Print the number of jobs, every difference between arms, the settings that tuning tries, and the estimated time.

    Args:
        planned: the study, checked.
        jobs: number of processes, for the estimate.
        console: where it is printed.
        timed: rehearse a few steps of every arm for the estimate, which loads models.
    """
    study = planned.study
    stages, arms = [job for stage in planned.stages() for job in stage], planned.arms()
    tuning = all_trials(planned)
    console.print(Text(study.question or study.name, style="bold"))
    console.print(f"{study.primary_metric}, {study.better} is better; baseline {study.reference_arm}", highlight=False)
    for name, runs in (("stages", stages), ("trials of tuning", tuning), ("runs of arms", arms)):
        finished = sum(job.finished for job in runs)
        if runs:
            console.print(
                f"  {len(runs):>4} {name}{f', {finished} of them finished' if finished else ''}", highlight=False
            )
    seeds = ", ".join(map(str, study.seeds))
    console.print(
        f"       {len(study.all_arms())} arms × seeds {seeds}, into {planned.folder}/", highlight=False, soft_wrap=True
    )
    console.print(_differences([job for job in arms if job.seed == study.seeds[0]], study.varies))
    for arm in tuned_arms(planned):
        lines = (", ".join(f"{k}={short_value(v)}" for k, v in s.items()) for s in settings_of(study, arm))
        console.print(f"{arm} tries " + "; ".join(lines), highlight=False, markup=False)
    missing = [job for job in (*stages, *tuning, *arms) if not job.finished]
    console.print(_estimate(missing, jobs) if timed else "time: not estimated (--untimed)", highlight=False)


def _differences(arms: Sequence[RunJob], varies: Sequence[str]) -> Table:
    """A row for each field that differs between arms; those that `varies` does not declare are marked."""
    title = "what differs between arms; ! is not declared in `varies`, so the report calls it a confound"
    table = Table(title=title, title_justify="left", box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("field", no_wrap=True, overflow="fold")
    for job in arms:
        table.add_column(Text(job.name))
    fields = [flat(as_evaluated(with_defaults(job.recipe.model_dump(mode="json")))) for job in arms]
    for key in dict.fromkeys(key for one in fields for key in one):
        values = [short_value(one[key]) if key in one else "" for one in fields]
        if len(set(values)) > 1 and not within(key, (*IMMATERIAL, "seed")):
            field = Text(key) if within(key, varies) else Text(f"! {key}", style="red")
            table.add_row(field, *map(Text, values))
    return table


def with_defaults(tree: dict[str, Any]) -> dict[str, Any]:
    """A resolved recipe with all fields of its objectives: two objectives may differ in a default that no recipe names."""
    terms = []
    for term in tree["objective"]:
        given = {key: value for key, value in term.items() if key not in ("name", "weight", "source")}
        fields = vars(load_objective(term["name"], **given))
        plain = {key: v if isinstance(v, str | int | float | None) else str(v) for key, v in fields.items()}
        terms.append({"name": term["name"], **plain, **term})
    return tree | {"objective": terms}


def _estimate(missing: Sequence[Job], jobs: int) -> str:
    """How long these jobs take, as a sentence; a run of each arm is rehearsed for it."""
    seconds: dict[str, float] = {}
    runs = [job for job in missing if isinstance(job, RunJob)]
    for job in runs:
        if job.name not in seconds and not waits_for_stage(job):
            seconds[job.name] = rehearsed_seconds(job)
    if not seconds:
        return "time: nothing to run" if not missing else "time: known when the stages have run"
    mean = sum(seconds.values()) / len(seconds)
    start = start_up_seconds()  # of all processes at once
    total = start + sum(seconds.get(job.name, mean) for job in runs) / min(jobs, len(runs))
    waiting = len({job.name for job in runs} - set(seconds))
    guessed = f"; {waiting} that wait for a stage are taken to be like the mean of the others" if waiting else ""
    labels = "; labelling is not in it" if len(runs) < len(missing) else ""
    how = f"from {STEPS} steps and {PROMPTS} held-out prompts of each arm, scaled up, and {start:.0f} s to start{guessed}{labels}"
    return f"time: about {rough_duration(total)} with {jobs} {'process' if jobs == 1 else 'processes'} ({how})"


def start_up_seconds() -> float:
    """How long a new process takes until it can run a job: Python, torch, transformers."""
    began = time.monotonic()
    subprocess.run([sys.executable, "-c", "import prefopt.runs.run, prefopt.study.executors"], check=True)
    return time.monotonic() - began


def rehearsed_seconds(job: RunJob) -> float:
    """An estimate of a run's duration: start, steps and evaluations are each timed on a short run of the same recipe."""
    from prefopt.runs.planning import plan
    from prefopt.runs.run import run

    steps, small = plan(job.recipe).steps, _small(job.recipe)
    with tempfile.TemporaryDirectory() as folder:
        start = time.monotonic()
        with profiling() as clock:
            result = run(small, Path(folder) / "run", console=Terminal(quiet=True))
        whole, loading = time.monotonic() - start, clock.sections[("loading",)].seconds
        each = [line["seconds"] for line in RunFolder(result.folder).history() if "seconds" in line]
    every, sets = job.recipe.evaluate.every, len(job.recipe.evaluate.sets)
    evaluations = 2 * (1 + sets) + (
        2 + steps // every if every else 0
    )  # sets are taken to be as large as the test rows
    one = (whole - loading - sum(each)) / 2 * _held_out(job.recipe) / max(_held_out(small), 1)
    return loading + (each[-1] * steps if each else 0.0) + one * evaluations


def _held_out(settings: Recipe) -> int:
    return settings.evaluate.prompts + settings.evaluate.rows


def _small(settings: Recipe) -> Recipe:
    evaluate, train = settings.evaluate, settings.train
    fewer = {"prompts": min(evaluate.prompts, PROMPTS), "rows": min(evaluate.rows, PROMPTS)}
    alone: dict[str, object] = {"every": None, "sets": {}}
    shorter = {"steps": 0 if train.steps == 0 else STEPS, "epochs": None, "checkpoint_every": None}
    changes = {
        "evaluate": evaluate.model_copy(update=fewer | alone),
        "train": train.model_copy(update=shorter),
        "track": settings.track.without_trackers().model_copy(update={"every": 1}),
    }
    return settings.model_copy(update=changes)
