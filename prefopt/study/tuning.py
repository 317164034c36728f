"""Fair tuning: the same number of trials for every arm, on other seeds and on validation rows."""

import json
import math
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import product
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from prefopt.runs.records import AT_KL, RunOfArm, read_run
from prefopt.study.jobs import Job, RunJob
from prefopt.study.plan import StudyPlan
from prefopt.study.spec import Choices, Range, Study
from prefopt.support.errors import PrefoptError
from prefopt.support.files import write_whole
from prefopt.support.seeds import seed_for

if TYPE_CHECKING:
    from prefopt.study.executors import Outcome

Settings = Mapping[str, Any]


def tuned_arms(planned: StudyPlan) -> list[str]:
    """The arms that are tuned: those that train."""
    if planned.study.tune is None:
        return []
    first = planned.study.seeds[0]
    return [job.name for job in planned.arms() if job.seed == first and job.recipe.train.steps != 0]


def settings_of(study: Study, arm: str) -> list[dict[str, Any]]:
    """The settings that an arm tries, in order; a field that several arms tune takes the same values in all.

    Raises:
        PrefoptError: a grid has another number of points than `tune.trials`, or contains a range.
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


def trials(planned: StudyPlan, arm: str) -> list[list[RunJob]]:
    """The runs of each trial of an arm, one for each seed of tuning."""
    tune = planned.study.tune
    assert tune is not None
    return [
        [planned.trial(arm, number, seed, settings) for seed in tune.seeds]
        for number, settings in enumerate(settings_of(planned.study, arm))
    ]


def all_trials(planned: StudyPlan) -> list[RunJob]:
    """The runs of all trials of all tuned arms; none where nothing is tuned."""
    return [job for arm in tuned_arms(planned) for trial in trials(planned, arm) for job in trial]


def chosen(folder: Path) -> dict[str, Settings]:
    """The settings that tuning has chosen so far, by arm."""
    file = folder / "tuning.json"
    return {} if not file.exists() else {arm: one["chosen"] for arm, one in json.loads(file.read_text()).items()}


def choose(planned: StudyPlan, arm: str) -> Settings | None:
    """The settings of an arm's best trial, written to tuning.json for good; None where no trial finished."""
    study = planned.study
    tried = settings_of(study, arm)
    metric, sign = _selection(study)
    measured = [[_measured(job, metric) for job in runs] for runs in trials(planned, arm)]
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
    file = planned.folder / "tuning.json"
    before = json.loads(file.read_text()) if file.exists() else {}
    write_whole(file, json.dumps(before | {arm: record}, indent=2))
    return tried[best]


def tune(
    planned: StudyPlan, execute: Callable[[Sequence[Job]], Iterable["Outcome"]], show: Callable[["Outcome"], None]
) -> tuple[dict[str, Settings], list[str]]:
    """Run the trials that are missing, and choose the best of each arm.

    Args:
        planned: the study.
        execute: runs jobs and yields their outcomes.
        show: is called with every outcome.

    Returns:
        Settings by arm, and the arms of which every trial failed.
    """
    known = chosen(planned.folder)
    open_arms = [arm for arm in tuned_arms(planned) if arm not in known]
    missing = [job for arm in open_arms for runs in trials(planned, arm) for job in runs if not job.finished]
    for outcome in execute(missing):
        show(outcome)
    choices = {arm: choose(planned, arm) for arm in open_arms}
    failed = [arm for arm, settings in choices.items() if settings is None]
    return {**known, **{arm: settings for arm, settings in choices.items() if settings is not None}}, failed


def _selection(study: Study) -> tuple[str, int]:
    """The metric that selects the best trial, and the sign with which larger is better."""
    assert study.tune is not None
    select = study.tune.select or ("max" if study.better == "higher" else "min")
    return study.tune.metric or study.primary_metric.removesuffix(AT_KL), 1 if select == "max" else -1


def _measured(job: RunJob, metric: str) -> float:
    """The metric at the end of a trial; NaN where the trial failed.

    Raises:
        PrefoptError: the trial finished and does not have this metric.
    """
    if not job.finished:
        return math.nan
    after = read_run(RunOfArm(job.name, job.seed, job.folder)).after
    if metric not in after:
        raise PrefoptError(f"{job} has no metric {metric!r}; it has {', '.join(after)}")
    return after[metric]


def _drawn(choices: Choices, number: int, name: str) -> Any:
    draw = random.Random(seed_for(0, "tune", number, name))
    if not isinstance(choices, Range):
        return draw.choice(choices)
    if choices.log:
        return math.exp(draw.uniform(math.log(choices.low), math.log(choices.high)))
    return draw.uniform(choices.low, choices.high)
