"""What a study would do: its runs, their differences, and how long they may take."""

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
from prefopt.runs.folder import RunFolder
from prefopt.study.comparison.confounds import IMMATERIAL, said, within
from prefopt.study.job import Job, Piece
from prefopt.study.jobs import Jobs
from prefopt.study.run import in_words, waits
from prefopt.study.tuning import settings_of, trials, tuned_arms
from prefopt.support.profile import profiling

STEPS, PROMPTS = 2, 32
"""Of a rehearsal: the second step is timed, for the first one warms up; held-out prompts and rows at most."""


def show_plan(planned: Jobs, jobs: int, console: Console, timed: bool) -> None:
    """Print the plan, its count, every difference between arms, and the estimated time.

    Args:
        planned: the study, checked.
        jobs: processes.
        console: where.
        timed: rehearse a step of every arm for the estimate, which loads models.
    """
    study = planned.study
    stages, arms = [job for stage in planned.stages() for job in stage], planned.arms()
    tried = [job for runs in trials(planned).values() for trial in runs for job in trial] if study.tune else []
    console.print(Text(study.question or study.name, style="bold"))
    console.print(f"{study.metric}, {study.better} is better; baseline {study.reference_arm}", highlight=False)
    for name, runs in (("stages", stages), ("trials of tuning", tried), ("runs of arms", arms)):
        done = sum(job.done for job in runs)
        if runs:
            console.print(f"  {len(runs):>4} {name}{f', {done} of them finished' if done else ''}", highlight=False)
    seeds = ", ".join(map(str, study.seeds))
    console.print(
        f"       {len(study.all_arms())} arms × seeds {seeds}, into {planned.folder}/", highlight=False, soft_wrap=True
    )
    console.print(_differences([job for job in arms if job.seed == study.seeds[0]], study.varies))
    for arm in tuned_arms(planned):
        lines = (", ".join(f"{k}={said(v)}" for k, v in s.items()) for s in settings_of(study, arm))
        console.print(f"{arm} tries " + "; ".join(lines), highlight=False, markup=False)
    missing = [job for job in (*stages, *tried, *arms) if not job.done]
    console.print(_estimate(missing, jobs) if timed else "time: not estimated (--untimed)", highlight=False)


def _differences(arms: Sequence[Job], varies: Sequence[str]) -> Table:
    """A row for each field that is not the same in all arms; those that were not declared to vary in red."""
    title = "what differs between arms; [red]red[/]: not declared in `varies`, so the report calls it a confound"
    table = Table(title=title, title_justify="left", box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("field", no_wrap=True, overflow="fold")
    for job in arms:
        table.add_column(job.name)
    fields = [flat(with_defaults(job.recipe.model_dump(mode="json"))) for job in arms]
    for key in dict.fromkeys(key for one in fields for key in one):
        values = [said(one[key]) if key in one else "" for one in fields]
        if len(set(values)) > 1 and not within(key, (*IMMATERIAL, "seed")):
            table.add_row(Text(key, style="" if within(key, varies) else "red"), *map(Text, values))
    return table


def with_defaults(tree: dict[str, Any]) -> dict[str, Any]:
    """A resolved recipe whose objectives have every field: two may differ in what neither recipe names."""
    terms = []
    for term in tree["objective"]:
        given = {key: value for key, value in term.items() if key not in ("name", "weight", "source")}
        made = vars(load_objective(term["name"], **given))
        plain = {key: v if isinstance(v, str | int | float | None) else str(v) for key, v in made.items()}
        terms.append({"name": term["name"], **plain, **term})
    return tree | {"objective": terms}


def flat(tree: Any, key: str = "") -> dict[str, Any]:
    """The values of a resolved recipe by their dotted keys; an objective alone in its list needs no number."""
    if isinstance(tree, list) and tree and all(isinstance(item, dict) for item in tree):
        tree = tree[0] if len(tree) == 1 else {str(i): item for i, item in enumerate(tree)}
    if not isinstance(tree, dict) or not tree:
        return {key: tree}
    return {k: v for name, item in tree.items() for k, v in flat(item, f"{key}.{name}".lstrip(".")).items()}


def _estimate(missing: Sequence[Piece], jobs: int) -> str:
    """In words, how long these runs take, by rehearsing one of each arm."""
    taken: dict[str, float] = {}
    runs = [job for job in missing if isinstance(job, Job)]
    for job in runs:
        if job.name not in taken and not waits(job):
            taken[job.name] = rehearsed(job)
    if not taken:
        return "time: nothing to run" if not missing else "time: known when the stages are made"
    usual = sum(taken.values()) / len(taken)
    total = sum(taken.get(job.name, usual) for job in runs) / min(jobs, len(runs))
    waiting = len({job.name for job in runs} - set(taken))
    guessed = f"; {waiting} that wait for a stage are taken to be like the mean of the others" if waiting else ""
    labels = "; labelling is not in it" if len(runs) < len(missing) else ""
    how = f"from {STEPS} steps and {PROMPTS} held-out prompts of each arm, scaled up{guessed}{labels}"
    return f"time: about {in_words(total)} with {jobs} {'process' if jobs == 1 else 'processes'} ({how})"


def rehearsed(job: Job) -> float:
    """Seconds that a run may take: its start, its steps and its evaluations, each measured on a small run of the same recipe."""
    from prefopt.runs.planning import plan
    from prefopt.runs.run import run

    steps, small = plan(job.recipe).steps, _small(job.recipe)
    with tempfile.TemporaryDirectory() as folder:
        start = time.monotonic()
        with profiling() as clock:
            result = run(small, Path(folder) / "run", console=Console(quiet=True))
        whole, loading = time.monotonic() - start, clock.sections[("loading",)].seconds
        each = [line["seconds"] for line in RunFolder(result.folder).history() if "seconds" in line]
    evaluations = 2 + (steps // job.recipe.evaluate.every if job.recipe.evaluate.every else 0)
    one = (whole - loading - sum(each)) / 2 * _held_out(job.recipe) / max(_held_out(small), 1)
    return loading + (each[-1] * steps if each else 0.0) + one * evaluations


def _held_out(settings: Recipe) -> int:
    return settings.evaluate.prompts + settings.evaluate.rows


def _small(settings: Recipe) -> Recipe:
    evaluate, train = settings.evaluate, settings.train
    fewer = {"prompts": min(evaluate.prompts, PROMPTS), "rows": min(evaluate.rows, PROMPTS), "every": None}
    shorter = {"steps": 0 if train.steps == 0 else STEPS, "epochs": None, "checkpoint_every": None}
    changes = {
        "evaluate": evaluate.model_copy(update=fewer),
        "train": train.model_copy(update=shorter),
        "track": settings.track.model_copy(update={"wandb": None, "every": 1}),
    }
    return settings.model_copy(update=changes)
