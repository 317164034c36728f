"""How far a study has come, from the files in its folder alone: what is finished, running, waiting or failed, and what is left."""

import json
import os
import socket
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

from prefopt.runs.folder import RunFolder
from prefopt.study.places import in_words, queued_file, read_place, started_file
from prefopt.study.stopping import asked_to_stop
from prefopt.support.errors import PrefoptError
from prefopt.support.files import is_locked

State = Literal["finished", "running", "waiting", "interrupted", "failed"]
LAST = 20
"""The number of steps from which the rate is taken."""


def jobs_file(folder: Path) -> Path:
    """Where a study writes what its jobs are and which process works on them."""
    return folder / "jobs.json"


@dataclass(frozen=True)
class JobStatus:
    """One job.

    Attributes:
        name: of its arm, stage or trial.
        seed: which of the study's.
        folder: its run folder.
        state: interrupted: it has begun, and nobody works on it.
        step: the last one.
        steps: planned; None where only its data tell.
        rate: steps a second, over the last ones; None before there is one.
        spent: seconds since it began, start-up and evaluations included; of one that is over, until it was.
        left: an estimate in seconds, by `_seconds_of`; 0 where it is over, None where nothing tells.
        trouble: why it failed, in a line.
        where: the machine that works on it, and what that is on a cluster; of one that waits, the queue; empty where none did.
        history: lines of metrics.jsonl.
    """

    name: str
    seed: int
    folder: Path
    state: State
    step: int
    steps: int | None
    rate: float | None
    spent: float
    left: float | None
    trouble: str
    where: str
    history: Sequence[Mapping[str, Any]]

    def __str__(self) -> str:
        return f"{self.name} seed {self.seed}"


@dataclass(frozen=True)
class StudyStatus:
    """A study.

    Attributes:
        folder: its own.
        title: its question, or its name.
        metric: its primary one.
        jobs: all, in the order in which they begin.
        working: whether a process works on it.
        stopping: whether it was asked to begin no further job.
        left: an estimate in seconds; None where nothing tells.
        options: of the command line, with which its jobs ran where they did.
    """

    folder: Path
    title: str
    metric: str
    jobs: Sequence[JobStatus]
    working: bool
    stopping: bool
    left: float | None
    options: str = ""

    @property
    def stoppable(self) -> bool:
        """Whether somebody would see a wish to stop: the process of the study, or what a cluster has of it."""
        return self.working or any(job.where for job in self.of("running", "waiting", "interrupted"))

    def of(self, *states: State) -> list[JobStatus]:
        """The jobs in one of these states."""
        return [job for job in self.jobs if job.state in states]


def read_status(folder: Path) -> StudyStatus:
    """What the files of a study say now. It loads no model and imports no torch.

    Raises:
        PrefoptError: the folder holds no study that has begun.
    """
    file = jobs_file(folder)
    if not file.is_file():
        if is_locked(folder):
            raise PrefoptError(
                f"the study in {folder} is being started, which checks its recipes and data first: look again"
            )
        raise PrefoptError(
            f"{folder} holds no study that has begun: it has no jobs.json. `prefopt study STUDY` begins it, and one that was "
            "started just now is seen once its libraries are loaded"
        )
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        process, listed = content["process"], content["jobs"]
        working = _is_alive(process)
        jobs = [_job(folder, one, process["started"] if working else None) for one in listed]
    except (ValueError, KeyError, TypeError) as error:
        raise PrefoptError(f"{file} is damaged: remove it; the study's next start writes it again") from error
    jobs = _with_estimates(jobs)
    left = None if any(job.left is None for job in jobs) else sum(job.left or 0.0 for job in jobs)
    at_once = process["processes"] or max(1, sum(job.state == "running" for job in jobs))
    several = min(at_once, max(1, sum(job.left != 0 for job in jobs)))
    longest = max((job.left or 0.0 for job in jobs if job.state == "running"), default=0.0)
    return StudyStatus(
        folder,
        content["title"],
        content["metric"],
        jobs,
        working,
        asked_to_stop(folder) and working,
        None if left is None else max(left / several, longest),
        content.get("options", ""),
    )


def _is_alive(process: Mapping[str, Any]) -> bool:
    """Whether the process that began the study still works on it; of another machine, as long as it has not said that it ended."""
    if process["ended"]:
        return False
    if process["host"] != socket.gethostname():
        return True
    try:
        os.kill(process["pid"], 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # somebody else's
        return True
    return True


def _job(folder: Path, one: Mapping[str, Any], since: float | None) -> JobStatus:
    """A job without an estimate, of a study on which a process works since a time, or none."""
    run = RunFolder(folder / one["folder"])
    started = started_file(folder, one["name"], one["seed"])
    began = started.stat().st_mtime if started.exists() else None
    over = run.summary_file if one["kind"] == "run" else run.manifest_file
    finished = run.finished if one["kind"] == "run" else "finished" in run.manifest()
    queued = queued_file(folder, one["name"], one["seed"])
    state: State = "waiting"
    if finished:
        state = "finished"
    elif began is not None and not _after(run.error_file, began) and _is_worked_on(run, began, queued, since):
        state = "running"
    elif run.failed:
        state = "failed"
    elif run.begun or began is not None:
        state = "interrupted"
    history = list(run.history())
    seconds = [line["seconds"] for line in history[-LAST:] if line.get("seconds")]
    end = over.stat().st_mtime if finished else time.time() if state == "running" else began
    return JobStatus(
        one["name"],
        one["seed"],
        run.path,
        state,
        int(max((line["step"] for line in history), default=0)),
        one["steps"],
        1 / fmean(seconds) if seconds else None,
        max(0.0, end - began) if began is not None and end is not None else 0.0,
        0.0 if finished or state == "failed" else None,
        (run.error().strip().splitlines() or ["no message"])[-1] if state == "failed" else "",
        in_words(read_place(started if state in ("running", "failed") else queued)) if state != "finished" else "",
        history,
    )


def _is_worked_on(run: RunFolder, began: float, queued: Path, since: float | None) -> bool:
    """Whether a job that has begun, and has not failed since, is still at it.

    Args:
        run: its folder.
        began: when.
        queued: the file that says when it was last given to a queue.
        since: from when on a process works on the study; None where none does.
    """
    if _after(queued, began):  # it made room, or was lost, and waits
        return False
    if since is not None and began >= since:
        return True
    return queued.exists() and is_locked(run.path)  # a cluster may go on without the study


def _after(file: Path, moment: float) -> bool:
    return file.exists() and file.stat().st_mtime >= moment


def _with_estimates(jobs: Sequence[JobStatus]) -> list[JobStatus]:
    """The same jobs with the time that each still takes, as far as those that are over or running tell."""
    return [job if job.left is not None else replace(job, left=_left(job, jobs)) for job in jobs]


def _left(job: JobStatus, jobs: Sequence[JobStatus]) -> float | None:
    """What a job takes in all, less what it has behind it; at least the steps that are left, at their rate."""
    whole = _seconds_of(job, jobs)
    steps = (job.steps - job.step) / job.rate if job.steps is not None and job.rate else None
    if job.state == "running":
        return None if whole is None and steps is None else max((whole or 0.0) - job.spent, steps or 0.0, 1.0)
    if whole is None:
        return None
    return whole if job.steps is None or not job.steps else max(whole * (1 - job.step / job.steps), 1.0)


def _seconds_of(job: JobStatus, jobs: Sequence[JobStatus]) -> float | None:
    """How long a job of this name takes, from its start to its last file.

    The mean of those of its name that are finished; else of all that are; else what running ones have shown so far.
    """
    over = [other for other in jobs if other.state == "finished" and other.spent > 0]
    own = [other.spent for other in over if other.name == job.name]
    if own or over:
        return fmean(own or [other.spent for other in over])
    shown = [_projected(other) for other in jobs if other.state == "running"]
    known = [seconds for seconds in shown if seconds is not None]
    return fmean(known) if known else None


def _projected(job: JobStatus) -> float | None:
    """The whole duration of a running job: what was spent, and the steps that are left."""
    return job.spent + (job.steps - job.step) / job.rate if job.steps is not None and job.rate else None
