"""What executors share that send jobs to other machines: how many at once, jobs that are lost, a study that is asked to stop."""

import abc
import os
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from prefopt.runs.folder import RunFolder
from prefopt.study.executors.executor import Executor, Outcome, log_file, record_failure
from prefopt.study.executors.performing import perform, set_up_process
from prefopt.study.jobs import Job
from prefopt.study.places import note_queued, queued_file
from prefopt.study.stopping import NOT_STARTED, PAUSED, asked_to_stop
from prefopt.support.files import is_locked

WHILE_LOCKED = 120.0
"""Seconds for which a job waits until the process that had it before has left its folder: a lost node may end it late."""


@dataclass(frozen=True)
class SentJob:
    """A job as it is sent to another machine, which shares the study's folder and has the same packages.

    Attributes:
        job: which.
        directory: where the study was started; paths in its recipes start from there.
    """

    job: Job
    directory: Path

    def perform(self, within: str, preempted: Callable[[], bool] | None = None) -> Outcome:
        """Run it in this process, or what is left of it; the arguments are those of `perform`."""
        os.chdir(self.directory)
        set_up_process()
        waited = time.monotonic()
        while is_locked(self.job.folder) and time.monotonic() < waited + WHILE_LOCKED:
            time.sleep(0.5)
        return Outcome(self.job) if self.job.finished else perform(self.job, preempted, within)


@dataclass(frozen=True)
class Lost:
    """A job's process ended without an outcome.

    Attributes:
        why: in one line.
        details: what else there is to read.
        counts: whether the job itself may be the cause, so that it is not tried for ever.
    """

    why: str
    details: str = ""
    counts: bool = True


@dataclass
class Sent:
    """A job that was sent.

    Attributes:
        job: which.
        handle: the cluster's own of it.
        losses: how often in a row it was lost without a new checkpoint.
        checkpoints: that its folder had when it was last sent.
        missing: numbers of the cluster's answers, in a row, that did not know it.
    """

    job: Job
    handle: Any
    losses: int = 0
    checkpoints: frozenset[str] = frozenset()
    missing: set[int] = field(default_factory=set)


class RemoteExecutor(Executor):
    """Sends jobs to a cluster, and sends those again that were lost: they go on from their last checkpoint.

    Args:
        name: of the cluster's kind, as `--on` names it.
        at_once: at most how many jobs it has at a time; None sends all.
        retries: how often in a row a job is sent again that was lost without a new checkpoint.
        every: seconds between two looks.
    """

    def __init__(self, name: str, at_once: int | None, retries: int, every: float):
        self.name, self.at_once, self.retries, self.every = name, at_once, retries, every
        self.sent: list[Sent] = []

    @abc.abstractmethod
    def send(self, job: SentJob) -> Any:
        """Give it to the cluster; the cluster's handle of it."""

    @abc.abstractmethod
    def describe(self, handle: Any) -> tuple[str, str]:
        """The cluster's id of a job, and what it is in words: ("4711", "SLURM job 4711")."""

    @abc.abstractmethod
    def look(self, sent: Sent) -> Outcome | Lost | None:
        """What became of a job; None while it waits or runs."""

    def taken_up(self, job: Job) -> Any:
        """The handle of a job that an earlier process of this study left on the cluster, where it still is; else None."""
        return None

    def withdraw_waiting(self) -> None:
        """Take back jobs that have not begun: the study is asked to stop."""
        return None

    def run(self, jobs: Sequence[Job]) -> Iterator[Outcome]:
        """Send the jobs in their order, and again where they are lost."""
        waiting = deque(jobs)
        while waiting or self.sent:
            if waiting and asked_to_stop(waiting[0].study_folder):
                yield Outcome(waiting.popleft(), NOT_STARTED)
                continue
            while waiting and (self.at_once is None or len(self.sent) < self.at_once):
                self._send(waiting.popleft())
            outcomes = [outcome for sent in tuple(self.sent) if (outcome := self._outcome(sent)) is not None]
            yield from outcomes
            if self.sent and asked_to_stop(self.sent[0].job.study_folder):
                self.withdraw_waiting()
            if self.sent and not outcomes:
                time.sleep(self.every)

    def _send(self, job: Job, again: bool = False, losses: int = 0) -> None:
        handle = None if again else self.taken_up(job)
        if handle is None:
            handle = self.send(SentJob(job, Path.cwd()))
            note_queued(job.study_folder, job.name, job.seed, self.name, *self.describe(handle))
        self.sent.append(Sent(job, handle, losses, _checkpoints(job)))

    def _outcome(self, sent: Sent) -> Outcome | None:
        """How a job ended; None while it goes on, also where it has just been sent again."""
        news = self.look(sent)
        if news is None:
            return None
        self.sent.remove(sent)
        job = sent.job
        if isinstance(news, Lost):
            if asked_to_stop(job.study_folder):
                news = Outcome(job, PAUSED if RunFolder(job.folder).begun else NOT_STARTED)
            else:
                losses = sent.losses if _checkpoints(job) == sent.checkpoints else 0
                losses += news.counts
                if losses <= self.retries:
                    _log(job, f"{news.why}; sent again")
                    self._send(job, again=True, losses=losses)
                    return None
                why = f"{news.why}, {losses} times in a row without a new checkpoint"
                news = record_failure(job, why, f"{why}\n{news.details}\n")
        queued_file(job.study_folder, job.name, job.seed).unlink(missing_ok=True)
        return news


def _checkpoints(job: Job) -> frozenset[str]:
    """Names of what a run has saved so far."""
    folder = RunFolder(job.folder).checkpoints
    return frozenset(file.name for file in folder.iterdir()) if folder.is_dir() else frozenset()


def _log(job: Job, line: str) -> None:
    with log_file(job).open("a", encoding="utf-8") as file:
        file.write(f"{line}\n")
