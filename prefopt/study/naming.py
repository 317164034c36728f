"""What is wrong with the arms and stages of a study and can be told by names alone: at once, since nothing here imports torch."""

import contextlib
from collections.abc import Iterator

from prefopt.runs import naming
from prefopt.study.jobs import Job
from prefopt.study.plan import StudyPlan
from prefopt.study.tuning import all_trials, chosen
from prefopt.support.errors import PrefoptError


def refuse_unknown_names(planned: StudyPlan) -> None:
    """Refuse what a look at names alone can tell, also of what waits for a stage, whose own files are not there yet.

    Raises:
        PrefoptError: as `prefopt.runs.naming`, with the arm or stage.
    """
    for job in jobs_of_first_seeds(planned):
        with errors_naming(job):
            naming.refuse_unknown_names(job.recipe, later=job.after)


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
