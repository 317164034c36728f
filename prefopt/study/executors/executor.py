"""The interface between a study and what runs its jobs."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, Self

from prefopt.runs.folder import RunFolder
from prefopt.study.jobs import Job
from prefopt.support.errors import PrefoptError
from prefopt.support.system_errors import system_sentence
from prefopt.support.terminal import visible


@dataclass(frozen=True)
class Outcome:
    """How a job ended.

    Attributes:
        job: which.
        error: why it failed, in one line; None where it finished.
    """

    job: Job
    error: str | None = None


class Executor(Protocol):
    """Runs the jobs of a study. Derive from it and write `run`; add `__exit__` where there is something to close.

    The study enters it before its first job, and leaves it after its last one or when it is interrupted. Everything that a job
    writes goes into its folder, so machines that run jobs must share the study's folder. An example that runs them one by one:

        class OneByOne(Executor):
            def run(self, jobs):
                return map(perform, jobs)

    Attributes:
        takes_stages: whether `run` may be given jobs together with those that they read from (`job.after`), and starts none before
            these have ended; otherwise it is called for a stage after the other, and at last for the arms.
    """

    takes_stages: bool = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        """End the processes that were started, cancel what still waits in a queue. By default there is nothing to do."""
        return None

    def check(self) -> None:
        """Refuse what can be known before the first job: a package or a cluster that is not there. By default nothing.

        Raises:
            PrefoptError: says what to do.
        """
        return None

    def left_running(self) -> str:
        """What goes on elsewhere after it was left, and how that ends or is taken up again; empty where nothing does."""
        return ""

    def run(self, jobs: Sequence[Job]) -> Iterable[Outcome]:
        """Run jobs that do not depend on each other.

        Args:
            jobs: in the order in which they should start. `perform(job)` runs one, in whatever process it is called; it never
                raises, and called again for a job that was cut off it continues from the last checkpoint.

        Returns:
            An outcome of each job, in the order in which they end. `record_failure` makes that of a job whose process or machine
            was lost.
        """
        ...


def checked_outcomes(executor: Executor, jobs: Sequence[Job]) -> Iterator[Outcome]:
    """The outcomes of jobs as an executor gives them, held against the folders of the jobs.

    A job has failed, too, if the executor gives no outcome of it, or says that it finished and its folder does not.

    Raises:
        PrefoptError: the executor yields something else than one outcome of each job.
    """
    name = type(executor).__name__
    waiting: dict[Path, Job] = {job.folder: job for job in jobs}
    outcomes = executor.run(jobs) if jobs else ()
    if not isinstance(outcomes, Iterable):
        raise PrefoptError(f"{name}.run must return or yield outcomes, got {outcomes!r}")
    for outcome in outcomes:
        if not isinstance(outcome, Outcome):
            raise PrefoptError(
                f"{name}.run must yield an Outcome for each job, as perform(job) returns, got {outcome!r}"
            )
        job = waiting.pop(outcome.job.folder, None)
        if job is None:
            raise PrefoptError(f"{name}.run has yielded an outcome that nobody waits for: of {outcome.job}")
        if outcome.error is None and not job.finished:
            why = f"{name} says that it finished, but {job.folder} holds no finished job"
            outcome = record_failure(job, why, f"{why}: does the machine that ran it share this folder?\n")
        yield outcome
    for job in waiting.values():
        why = f"{name}.run has ended without an outcome of it"
        yield record_failure(job, why, f"{why}\n")


def log_file(job: Job) -> Path:
    """What a run of its own would show in the terminal; its folder is made."""
    file = job.study_folder / "logs" / f"{job.name}-seed-{job.seed}.txt"
    file.parent.mkdir(exist_ok=True)
    return file


def record_failure(job: Job, why: str, details: str) -> Outcome:
    """Write error.txt into the job's folder.

    Args:
        job: that failed.
        why: in one line.
        details: the text of error.txt.
    """
    try:
        RunFolder(job.folder).write_error(visible(details))
    except OSError as error:  # a full disk, of which the job has died, too
        why = f"{why} (error.txt: {system_sentence(error)})"
    return Outcome(job, why)
