"""What is wrong with the arms and stages of a study and can be told by names alone: at once, since nothing here imports torch."""

import contextlib
from collections.abc import Iterator, Sequence

from prefopt.recipe import Recipe
from prefopt.runs import naming
from prefopt.runs.measured_by import known_metrics, measured_by
from prefopt.runs.records import AT_KL
from prefopt.study.jobs import Job, RunJob
from prefopt.study.plan import StudyPlan
from prefopt.study.spec import Study
from prefopt.study.tuning import all_trials, chosen
from prefopt.support.errors import PrefoptError, nearest


def refuse_unknown_names(planned: StudyPlan) -> None:
    """Refuse what a look at names alone can tell, also of what waits for a stage, whose own files are not there yet.

    Raises:
        PrefoptError: as `prefopt.runs.naming`, with the arm or stage.
    """
    jobs = list(jobs_of_first_seeds(planned))
    for job in jobs:
        with errors_naming(job):
            naming.refuse_unknown_names(job.recipe, later=job.after)
    _refuse_unknown_metrics(planned.study, [job.recipe for job in jobs if isinstance(job, RunJob)])


def _refuse_unknown_metrics(study: Study, recipes: Sequence[Recipe]) -> None:
    """Refuse a question about a metric of a name that there is not; whether its runs will measure it, is known with their data."""
    known = known_metrics(recipes) if recipes else None
    asked = [("metric", study.metric), ("tune.metric", study.tune and study.tune.metric)]
    for key, metric in (*asked, *(("measure", name) for name in study.measure)):
        plain = (metric or "").removesuffix(AT_KL).rpartition("/")[2].partition("[")[0]
        if known is not None and plain and plain not in known:
            raise PrefoptError(
                f"{key} is {metric}, and there is no such metric.{nearest(plain, known)} It would be measured by "
                f"{measured_by(plain)}"
            )


def jobs_of_first_seeds(planned: StudyPlan) -> Iterator[Job]:
    """The unfinished job of every stage, trial and arm for one seed: those of other seeds have the same mistakes."""
    study = planned.study
    firsts = (study.seeds[0], *(study.tune.seeds[:1] if study.tune else ()))
    for job in (
        *(job for stage in planned.stages() for job in stage),
        *all_trials(planned),
        *planned.arms(chosen(planned.folder)),
    ):
        if job.seed in firsts and not job.finished:
            yield job


@contextlib.contextmanager
def errors_naming(job: Job) -> Iterator[None]:
    """Begins messages of errors with the job's name."""
    try:
        yield
    except PrefoptError as error:
        raise PrefoptError(f"{job.name}: {error}") from error
