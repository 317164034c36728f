"""The metric that a study's question is about: the usual one where none is named, and whether its runs will measure it."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from prefopt.objectives import objective_class
from prefopt.recipe import Recipe
from prefopt.runs.held_out_metrics import held_out_metrics
from prefopt.runs.measured_by import MEASURED_BY, measured_by
from prefopt.runs.records import usual_metric
from prefopt.study.comparison.comparison import AT_KL
from prefopt.study.plan import StudyPlan
from prefopt.study.spec import Study
from prefopt.support.errors import PrefoptError, nearest


def plan_study(study: Study, folder: Path) -> StudyPlan:
    """The jobs of a study, whose primary metric is decided.

    Args:
        study: what is to be run.
        folder: of the study, absolute.

    Raises:
        PrefoptError: the recipe of an arm is not valid.
    """
    planned = StudyPlan(study, folder)
    if study.metric is not None:
        return planned
    recipes = [job.recipe for job in planned.arms() if job.seed == study.seeds[0]]
    own = [name for one in recipes for name in one.evaluate.metrics]
    metric = usual_metric([held_out_metrics(one, _trains_rewards(one)) for one in recipes], own)
    return StudyPlan(study.model_copy(update={"metric": metric}), folder)


def check_question(study: Study, measured: Mapping[str, Sequence[str]]) -> None:
    """Refuse a question that the runs will not answer.

    Args:
        study: its primary metric is decided.
        measured: of each arm that can be looked at, the held-out metrics that it will have.

    Raises:
        PrefoptError: an arm will not measure the primary metric, the one that tuning selects by, or no arm a further one.
    """
    for key, metric in (("metric", study.primary_metric), ("tune.metric", study.tune and study.tune.metric)):
        for arm, names in measured.items():
            if metric:
                _refuse_unmeasured(key, metric, f"arm {arm} will not measure", names)
    if study.tune and "/" in (chosen := study.tune.metric or study.primary_metric):
        raise PrefoptError(
            f"tuning would select by {chosen}, on a set that is held out for the study's runs: name a metric of validation rows in "
            f"tune.metric, such as {chosen.rpartition('/')[2]}"
        )
    everything = list(dict.fromkeys(name for names in measured.values() for name in names))
    for metric in study.measure:
        if everything:
            _refuse_unmeasured("measure", metric, "no arm will measure", everything)


def _refuse_unmeasured(key: str, metric: str, what: str, names: Sequence[str]) -> None:
    plain = metric.removesuffix(AT_KL)
    if plain not in names:
        by = measured_by(plain)
        raise PrefoptError(
            f"{key} is {metric}, which {what}.{nearest(plain, names)} It is measured by {by}; measured will be {', '.join(names)}"
        )
    if plain != metric and "/" in plain:
        raise PrefoptError(
            f"{key} is {metric}, and sets are measured at start and end alone, without the path that matching by KL takes"
        )
    if plain != metric and "kl" not in names:
        raise PrefoptError(f"{key} is {metric}, and the runs will not measure kl, which takes {MEASURED_BY['kl']}")


def _trains_rewards(settings: Recipe) -> bool:
    """Whether an objective of the run itself trains rewards, as far as its class tells."""
    needs = [getattr(objective_class(term.name), "needs", None) for term in settings.objective if term.source is None]
    return any(getattr(one, "rewards", False) for one in needs)
