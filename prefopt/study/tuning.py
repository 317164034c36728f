"""Fair tuning: the same number of trials for every arm, on other seeds and on validation rows."""

import json
import math
import random
from collections.abc import Callable, Mapping
from itertools import product
from pathlib import Path
from statistics import fmean
from typing import Any

from prefopt.study.comparison.tables import AT_KL
from prefopt.study.execute import Executor, Outcome
from prefopt.study.job import Job
from prefopt.study.jobs import Jobs
from prefopt.study.spec import Choices, Range, Study
from prefopt.support.errors import PrefoptError
from prefopt.support.files import write_whole
from prefopt.support.seeds import seed_for

Settings = Mapping[str, Any]


def tuned_arms(jobs: Jobs) -> list[str]:
    """Arms that have something to tune: those that train."""
    return [] if jobs.study.tune is None else [job.name for job in jobs.arms() if _first(job, jobs) and _trains(job)]


def settings_of(study: Study, arm: str) -> list[dict[str, Any]]:
    """What an arm tries, in order; fields that arms share are drawn alike for all.

    Raises:
        PrefoptError: a grid has another number of points than `tune.trials`, or from a range there is no grid.
    """
    tune = study.tune
    assert tune is not None
    fields: dict[str, Choices] = {**tune.fields, **study.all_arms()[arm].tune}
    if not fields:
        raise PrefoptError(f"arm {arm} has nothing to tune: name fields in tune.fields, or in `tune` of the arm")
    if tune.search == "random":
        return [{name: _drawn(c, number, name) for name, c in fields.items()} for number in range(tune.trials)]
    if ranges := [name for name, choices in fields.items() if isinstance(choices, Range)]:
        raise PrefoptError(f"tune.search is grid, and {ranges[0]} is a range: list its values, or search at random")
    points = [dict(zip(fields, values, strict=True)) for values in product(*fields.values())]
    if len(points) != tune.trials:
        raise PrefoptError(
            f"tune.trials is {tune.trials}, and the grid of arm {arm} has {len(points)} points: every arm gets the same number"
        )
    return points


def trials(jobs: Jobs) -> dict[str, list[list[Job]]]:
    """For each tuned arm, the runs of each of its trials."""
    tune = jobs.study.tune
    assert tune is not None
    return {
        arm: [
            [jobs.trial(arm, number, seed, settings) for seed in tune.seeds]
            for number, settings in enumerate(settings_of(jobs.study, arm))
        ]
        for arm in tuned_arms(jobs)
    }


def chosen(folder: Path) -> dict[str, Settings]:
    """What tuning has come to so far: settings by arm."""
    file = folder / "tuning.json"
    return {} if not file.exists() else {arm: one["chosen"] for arm, one in json.loads(file.read_text()).items()}


def choose(jobs: Jobs, arm: str) -> Settings | None:
    """The best trial's settings of an arm, written to tuning.json once and for all; None where no trial came to its end."""
    study = jobs.study
    tried = settings_of(study, arm)
    metric, sign = _sought(study)
    measured = [[_measured(job, metric) for job in runs] for runs in trials(jobs)[arm]]
    means = [sign * fmean(values) for values in measured]
    if all(map(math.isnan, means)):
        return None
    best = max(range(len(means)), key=lambda number: -math.inf if math.isnan(means[number]) else means[number])
    record = {
        "metric": metric,
        "trials": [
            {"settings": settings, "values": [None if math.isnan(v) else v for v in values]}
            for settings, values in zip(tried, measured, strict=True)
        ],
        "chosen": tried[best],
    }
    file = jobs.folder / "tuning.json"
    before = json.loads(file.read_text()) if file.exists() else {}
    write_whole(file, json.dumps(before | {arm: record}, indent=2))
    return tried[best]


def tune(jobs: Jobs, execute: Executor, tell: Callable[[Outcome], None]) -> tuple[dict[str, Settings], list[str]]:
    """Run what trials are missing, and choose.

    Args:
        jobs: of the study.
        execute: runs them.
        tell: is told every outcome.

    Returns:
        Settings by arm, and the arms of which every trial failed.
    """
    known = chosen(jobs.folder)
    open_arms = [arm for arm in tuned_arms(jobs) if arm not in known]
    every = trials(jobs) if open_arms else {}
    missing = [job for arm in open_arms for runs in every[arm] for job in runs if not job.done]
    for outcome in execute(missing):
        tell(outcome)
    found = {arm: choose(jobs, arm) for arm in open_arms}
    lost = [arm for arm, settings in found.items() if settings is None]
    return {**known, **{arm: settings for arm, settings in found.items() if settings is not None}}, lost


def _first(job: Job, jobs: Jobs) -> bool:
    return job.seed == jobs.study.seeds[0]


def _trains(job: Job) -> bool:
    return job.recipe.train.steps != 0


def _sought(study: Study) -> tuple[str, int]:
    """The metric that chooses, and its sign."""
    assert study.tune is not None
    select = study.tune.select or ("max" if study.better == "higher" else "min")
    return study.tune.metric or study.metric.removesuffix(AT_KL), 1 if select == "max" else -1


def _measured(job: Job, metric: str) -> float:
    """The metric at the end of a trial; NaN of one that failed.

    Raises:
        PrefoptError: it came to its end, and has no such metric.
    """
    file = job.folder / "summary.json"
    if not file.exists():
        return math.nan
    after = json.loads(file.read_text())["after"]
    if metric not in after:
        raise PrefoptError(f"{job} has no metric {metric!r}; it has {', '.join(after)}")
    value = after[metric]["value"] if isinstance(after[metric], dict) else after[metric]
    return math.nan if value is None else float(value)


def _drawn(choices: Choices, number: int, name: str) -> Any:
    draw = random.Random(seed_for(0, "tune", number, name))
    if not isinstance(choices, Range):
        return draw.choice(choices)
    if choices.log:
        return math.exp(draw.uniform(math.log(choices.low), math.log(choices.high)))
    return draw.uniform(choices.low, choices.high)
