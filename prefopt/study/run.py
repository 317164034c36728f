"""A study from its plan to its report."""

import contextlib
import fcntl
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from prefopt.study.comparison.tables import AT_KL
from prefopt.study.execute import Executor, Outcome, Workers, failed, one_by_one
from prefopt.study.job import Piece, finished
from prefopt.study.jobs import Jobs, changed_declarations
from prefopt.study.reporting import Result, write_report
from prefopt.study.spec import Study
from prefopt.study.tracked import log_comparison
from prefopt.study.tuning import chosen, trials, tune, tuned_arms
from prefopt.support.errors import PrefoptError
from prefopt.support.files import unused, write_whole
from prefopt.support.sharing import sharing


def run_study(
    study: Study, folder: str | Path | None = None, jobs: int = 1, console: Console | None = None
) -> list[Result]:
    """Make the stages, tune, run every arm with every seed, and write the report.

    What is finished in the folder is left alone, what is not goes on, and what failed is tried again. A run that fails leaves
    error.txt in its folder and the others go on.

    Args:
        study: what to do.
        folder: where; by default `study.folder`/`study.name`.
        jobs: processes. More than one start Python anew, so a script that calls this must guard it by `__name__ == "__main__"`.
        console: where a person follows it.

    Returns:
        Every run of every arm, also those that failed.

    Raises:
        PrefoptError: something that can be known before the first run is wrong; or the folder holds another study.
    """
    console = console or Console(stderr=True)
    planned = Jobs(study, place_of(study, folder))
    with sharing():
        check(planned)
        with _only_one(planned.folder), _executor(jobs) as execute:
            _write_study(planned)
            begun = time.time()
            results = _all_runs(planned, execute, console)
        comparison = write_report(study, planned.folder, results, console)
        if not (planned.folder / "wandb").exists() or any(_changed(result, begun) for result in results):
            log_comparison(planned, results, comparison)
    return results


def _changed(result: Result, since: float) -> bool:
    """Whether a run came to its end, good or bad, since that time."""
    ends = (result.folder / "summary.json", result.folder / "error.txt")
    return any(file.exists() and file.stat().st_mtime >= since for file in ends)


def place_of(study: Study, folder: str | Path | None) -> Path:
    """The study's folder, absolute."""
    return (Path(study.folder) / study.name if folder is None else Path(folder)).expanduser().absolute()


def check(planned: Jobs) -> None:
    """Refuse what can be known to be wrong before a model is loaded.

    Raises:
        PrefoptError: a recipe, data or model that will not do; a folder that holds other runs under the same names.
    """
    if changed := changed_declarations(planned.study, planned.folder):
        raise PrefoptError(
            f"{planned.folder} holds a study that declared another {changed[0]}, and results have been seen since: give the new "
            "study a folder of its own (--out)"
        )
    settled = chosen(planned.folder)
    arms, stages = planned.arms(settled), [job for stage in planned.stages() for job in stage]
    tried = [job for runs in trials(planned).values() for trial in runs for job in trial] if planned.study.tune else []
    untuned = set(tuned_arms(planned)) - set(settled)
    for job in (*stages, *tried, *(job for job in arms if job.name not in untuned)):
        if differing := job.drifted():
            raise PrefoptError(
                f"{job.folder} was run with another recipe, which differs in {', '.join(differing)}: give the changed study a "
                "folder of its own (--out), or name the changed arm anew"
            )
    for job in (*stages, *tried, *arms):
        if not job.done and job.seed in (planned.study.seeds[0], *_first_trial(planned)) and not waits(job):
            with _named(job):
                job.check()


def _first_trial(planned: Jobs) -> Sequence[int]:
    return planned.study.tune.seeds[:1] if planned.study.tune else ()


def waits(job: Piece) -> bool:
    """Whether it reads from a stage that is not made yet, so that it can be checked only then."""
    return any(not finished(stage) for stage in job.after)


@contextlib.contextmanager
def _named(job: Piece) -> Iterator[None]:
    """Messages say of which run they are."""
    try:
        yield
    except PrefoptError as error:
        raise PrefoptError(f"{job.name}: {error}") from error


def _all_runs(planned: Jobs, execute: Executor, console: Console) -> list[Result]:
    follow = Progress(planned, console)
    for stage in planned.stages():
        for outcome in execute([job for job in stage if not job.done]):
            follow(outcome)
    settings: Mapping[str, Mapping[str, Any]] = {}
    lost: list[str] = []
    if planned.study.tune is not None:
        settings, lost = tune(planned, execute, follow)
    arms = planned.arms(settings)
    for job in (job for job in arms if job.name in lost):
        follow(failed(job, "no trial of it came to its end", "no trial of it came to its end: see tuning/\n"))
    for outcome in execute([job for job in arms if not job.done and job.name not in lost]):
        follow(outcome)
    return [Result(job.name, job.seed, job.folder) for job in arms]


class Progress:
    """A line for each run that ends: which, what it came to, how long it took, and how long the rest may take.

    Args:
        planned: the study.
        console: where.
    """

    def __init__(self, planned: Jobs, console: Console):
        self.console, self.metric = console, planned.study.metric.removesuffix(AT_KL)
        every: list[Piece] = [job for stage in planned.stages() for job in stage]
        if planned.study.tune:
            every += [job for runs in trials(planned).values() for trial in runs for job in trial]
        every += planned.arms()
        self.total, self.ended = len(every), sum(job.done for job in every)
        self.started, self.begun = time.monotonic(), self.ended
        if self.ended:
            console.print(f"{self.ended} of {self.total} runs are finished already", highlight=False)

    def __call__(self, outcome: Outcome) -> None:
        """Show it."""
        self.ended += 1
        head = f"[{self.ended}/{self.total}] {outcome.job}"
        if outcome.error is not None:
            said = f"{head} failed: {outcome.error}\n  {outcome.job.folder / 'error.txt'}"
            self.console.print(said, style="red", highlight=False, markup=False, soft_wrap=True)
            return
        spent = time.monotonic() - self.started
        left = spent / (self.ended - self.begun) * (self.total - self.ended)
        parts = [head, *outcome.job.came_to(self.metric), *([f"about {in_words(left)} left"] if left else [])]
        self.console.print(" · ".join(parts), highlight=False, markup=False)


def in_words(seconds: float) -> str:
    """A time, roughly."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


@contextlib.contextmanager
def _executor(jobs: int) -> Iterator[Executor]:
    if jobs == 1:
        yield one_by_one
        return
    workers = Workers(jobs)
    try:
        yield workers
    finally:
        workers.close()


@contextlib.contextmanager
def _only_one(folder: Path) -> Iterator[None]:
    """Two studies at once in one folder would write over each other; the lock goes with the process that holds it."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise PrefoptError(f"{folder} is being worked on by another process: wait for it, or stop it") from None
        yield


def _write_study(planned: Jobs) -> None:
    """study.yaml, in full; one that said something else, for fewer arms or seeds perhaps, is kept beside it."""
    file, text = planned.folder / "study.yaml", planned.study.to_yaml()
    if file.exists() and file.read_text() != text:
        file.rename(unused(planned.folder / "study-before.yaml"))
    write_whole(file, text)
