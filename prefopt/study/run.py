"""Running a study: stages, tuning, arms, then the report."""

import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from prefopt.runs.folder import RunFolder
from prefopt.runs.manifest import date_of
from prefopt.runs.records import RunOfArm
from prefopt.study.comparison.comparison import AT_KL
from prefopt.study.conclusion import conclude
from prefopt.study.executors import (
    Executor,
    On,
    Outcome,
    checked_outcomes,
    executor_on,
    record_failure,
)
from prefopt.study.jobs import Job, is_finished
from prefopt.study.live import announced
from prefopt.study.naming import errors_naming, jobs_of_first_seeds, refuse_unknown_names
from prefopt.study.plan import StudyPlan, changed_declarations
from prefopt.study.question import check_question, plan_study
from prefopt.study.spec import Study, study_folder
from prefopt.study.stopping import NOT_STARTED, PAUSED, asked_to_stop
from prefopt.study.tuning import all_trials, chosen, tune, tuned_arms
from prefopt.study.wandb_log import log_comparison
from prefopt.support.dates import current_date
from prefopt.support.durations import rough_duration
from prefopt.support.errors import PrefoptError, some_of
from prefopt.support.files import locked, unused, write_whole
from prefopt.support.sharing import sharing
from prefopt.support.system_errors import noting
from prefopt.support.terminal import Terminal


def run_study(
    study: Study,
    folder: str | Path | None = None,
    jobs: int | None = None,
    executor: Executor | On | None = None,
    console: Console | None = None,
) -> list[RunOfArm]:
    """Run the stages, tune, run every arm with every seed, and write the report. The result does not depend on where jobs run.

    Called again, it leaves finished runs alone, continues unfinished ones, and tries failed ones again. A run that fails leaves
    error.txt in its folder, and the others go on.

    Args:
        study: what to run.
        folder: of the study; by default `study.folder`/`study.name`.
        jobs: number of local processes, by default 1; on a cluster, at most how many it is given at once. Several local ones
            start Python anew, so a script that calls this must be guarded by `if __name__ == "__main__":`.
        executor: where the jobs run: "local", "slurm" or "ray", with the settings of the study's `executor`; or an executor of
            one's own, which is entered and left here.
        console: for progress; by default stderr.

    Returns:
        Every run of every arm, also those that failed, and those that have not begun where the study was asked to stop.

    Raises:
        PrefoptError: something that can be known before the first run is wrong; the folder holds another study; both `jobs` and
            an executor of one's own are given.
    """
    if not isinstance(executor, str | None) and jobs not in (None, 1):
        raise PrefoptError(
            f"jobs={jobs} is a number of local processes, and an executor is given, too: leave one of them out"
        )
    where = executor_on(executor or "local", study.executor, jobs)
    processes = (jobs or 1) if executor in (None, "local") else jobs
    options = f"--on {executor}" if executor in ("slurm", "ray") else ""
    options += f" --jobs {jobs}" if jobs not in (None, 1) else ""
    console = console or Terminal(stderr=True)
    planned = plan_study(study, study_folder(study, folder))
    where.check()
    with sharing():
        with locked(planned.folder):  # from here on others see that it is being started
            check(planned)
            with noting(lambda _: "; ".join(filter(None, (where.left_running(), _kept(planned))))):
                _write_study(planned)
                _write_date(planned)
                started = time.time()
                with announced(planned, _all_jobs(planned), processes, options.strip()), where:
                    results = _run_all(planned, where, console)
        if results is None:
            console.print(f"stopped as asked: {_kept(planned)}", soft_wrap=True)
            return _results(planned)
        comparison = conclude(planned.study, planned.folder, results, console)
        if not (planned.folder / "wandb").exists() or any(_ended_since(result, started) for result in results):
            log_comparison(planned, results, comparison)
    return results


def _ended_since(result: RunOfArm, since: float) -> bool:
    """Whether a run has finished or failed since that time."""
    files = RunFolder(result.folder)
    return any(file.exists() and file.stat().st_mtime >= since for file in (files.summary_file, files.error_file))


def check(planned: StudyPlan) -> None:
    """Refuse what can be known to be wrong before a model is loaded.

    Raises:
        PrefoptError: a recipe, data or model that cannot be used; a folder that holds other runs under the same names.
    """
    if changed := changed_declarations(planned.study, planned.folder):
        raise PrefoptError(
            f"{planned.folder} holds a study that declared another {changed[0]}, and results have been seen since: give the new "
            "study a folder of its own (--out)"
        )
    settings = chosen(planned.folder)
    arms, stages = planned.arms(settings), [job for stage in planned.stages() for job in stage]
    tuning = all_trials(planned)
    untuned = set(tuned_arms(planned)) - set(settings)
    for job in (*stages, *tuning, *(job for job in arms if job.name not in untuned)):
        if differing := job.changed_fields():
            raise PrefoptError(
                f"{job.folder} was run with another recipe, which differs in {', '.join(differing)}: give the changed study a "
                "folder of its own (--out), or the changed arm a new name"
            )
    refuse_unknown_names(planned)
    measured = {}
    for job in jobs_of_first_seeds(planned):
        if not waits_for_stage(job):
            with errors_naming(job):
                measured[job.name] = job.check()
    check_question(planned.study, {job.name: measured[job.name] for job in arms if job.name in measured})


def waits_for_stage(job: Job) -> bool:
    """Whether it reads from a stage that has not finished yet: it can be checked only afterwards."""
    return any(not is_finished(stage) for stage in job.after)


class _AskedToStopError(Exception):
    """Somebody asked the study to stop, and a job has not begun, or not come to its end, because of it."""


def _run_all(planned: StudyPlan, executor: Executor, console: Console) -> list[RunOfArm] | None:
    """Every run of every arm, once all have ended; None where the study was asked to stop before."""
    try:
        _run_phases(planned, executor, Progress(planned, console))
    except _AskedToStopError:
        return None
    return _results(planned)


def _results(planned: StudyPlan) -> list[RunOfArm]:
    return [RunOfArm(job.name, job.seed, job.folder) for job in planned.arms(chosen(planned.folder))]


def _run_phases(planned: StudyPlan, executor: Executor, show: "Progress") -> None:
    """Stages, tuning, arms; nothing is decided by a phase that was not whole. Untuned arms wait for their own stages alone."""

    def execute(jobs: Sequence[Job]) -> Iterator[Outcome]:
        for outcome in checked_outcomes(executor, jobs):
            if outcome.error not in (NOT_STARTED, PAUSED):
                yield outcome
        if asked_to_stop(planned.folder) and any(not job.finished for job in jobs):
            raise _AskedToStopError

    stages, together = planned.stages(), executor.takes_stages and planned.study.tune is None
    for stage in [] if together else stages:
        for outcome in execute([job for job in stage if not job.finished]):
            show(outcome)
    settings: Mapping[str, Mapping[str, Any]] = {}
    untunable: list[str] = []
    if planned.study.tune is not None:
        settings, untunable = tune(planned, execute, show)
    arms = planned.arms(settings)
    for job in (job for job in arms if job.name in untunable):
        show(record_failure(job, "no trial of it finished", "no trial of it finished: see tuning/\n"))
    before = [job for stage in stages for job in stage] if together else []
    for outcome in execute([job for job in (*before, *arms) if not job.finished and job.name not in untunable]):
        show(outcome)


def _all_jobs(planned: StudyPlan) -> list[Job]:
    return [*(job for stage in planned.stages() for job in stage), *all_trials(planned), *planned.arms()]


def _kept(planned: StudyPlan) -> str:
    """What there is of a study that ends early, and how it goes on."""
    jobs = _all_jobs(planned)
    finished = sum(job.finished for job in jobs)
    begun = sum(RunFolder(job.folder).begun for job in jobs) - finished
    return (
        f"{planned.folder} keeps what was done: {finished} of {len(jobs)} runs are finished, {begun} begun; "
        "the same command goes on"
    )


def what_failed(planned: StudyPlan) -> str:
    """A sentence on the jobs of a study that has been run which did not come to their end; empty where all did."""
    failed = [str(job) for job in _all_jobs(planned) if not job.finished]
    if not failed or asked_to_stop(planned.folder):
        return ""
    return f"failed: {some_of(failed, 5)}; each folder has an error.txt, and the same command tries them again"


class Progress:
    """Prints a line for each job that ends: its name, its result, and an estimate of the time that is left.

    Args:
        planned: the study.
        console: where the lines are printed.
    """

    def __init__(self, planned: StudyPlan, console: Console):
        self.console, self.metric = console, planned.study.primary_metric.removesuffix(AT_KL)
        jobs = _all_jobs(planned)
        self.total, self.ended = len(jobs), sum(job.finished for job in jobs)
        self.started, self.ended_before = time.monotonic(), self.ended
        if self.ended:
            console.print(f"{self.ended} of {self.total} runs are finished already", highlight=False)

    def __call__(self, outcome: Outcome) -> None:
        """Print the line of a job that has ended."""
        self.ended += 1
        head = f"[{self.ended}/{self.total}] {outcome.job}"
        if outcome.error is not None:
            line = f"{head} failed: {outcome.error}\n  {outcome.job.folder / 'error.txt'}"
            self.console.print(line, style="red", highlight=False, markup=False, soft_wrap=True)
            return
        spent = time.monotonic() - self.started
        left = spent / (self.ended - self.ended_before) * (self.total - self.ended)
        parts = [head, *outcome.job.summary(self.metric), *([f"about {rough_duration(left)} left"] if left else [])]
        self.console.print(" · ".join(parts), highlight=False, markup=False)


def _write_study(planned: StudyPlan) -> None:
    """Write study.yaml in full; an earlier version of it, with fewer arms or seeds perhaps, is kept beside it."""
    file, text = planned.folder / "study.yaml", planned.study.to_yaml()
    if file.exists() and file.read_text() != text:
        file.rename(unused(planned.folder / "study-before.yaml"))
    write_whole(file, text)


def _write_date(planned: StudyPlan) -> None:
    """Write the date that chat templates write in all of its jobs, whenever they run: the first day of the study."""
    files = RunFolder(planned.folder)
    if files.manifest():
        return
    begun = [manifest for job in _all_jobs(planned) if (manifest := RunFolder(job.folder).manifest())]
    day = min(map(date_of, begun), default=current_date())
    files.write_manifest({"date": day.isoformat()})
