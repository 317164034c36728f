"""Jobs on a SLURM cluster, through submitit; its local executor rehearses the cluster on one machine."""

import getpass
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from functools import partial
from types import FrameType, SimpleNamespace
from typing import Any, NoReturn

from prefopt.study.cluster_settings import Slurm
from prefopt.study.executors.executor import Outcome, record_failure
from prefopt.study.executors.remote import Lost, RemoteExecutor, Sent, SentJob
from prefopt.study.jobs import Job
from prefopt.study.places import note_queued, queued_file, read_place
from prefopt.study.stopping import PREEMPTED
from prefopt.support.errors import PrefoptError, some_of
from prefopt.support.extras import extra

COMMANDS = ("sbatch", "srun", "squeue", "scancel")
LOOK_EVERY, ASK_EVERY = 0.5, 15.0
"""Seconds between two looks for results, and between two questions to the queue."""
MISSING = 2
"""After how many answers of the queue without it a job is lost; until then its result may be on its way through the file system."""


class SlurmExecutor(RemoteExecutor):
    """Submits each job to SLURM; one that is preempted, or reaches its time limit, saves a checkpoint and is queued again.

    Args:
        settings: what a job asks for.
        jobs: at most how many are submitted at once; None is what the settings say.
    """

    def __init__(self, settings: Slurm | None = None, jobs: int | None = None):
        self.settings = settings or Slurm()
        self.rehearses = self.settings.cluster == "local"
        at_once = jobs or self.settings.jobs or (1 if self.rehearses else None)
        super().__init__("slurm", at_once, self.settings.retries, LOOK_EVERY)
        self.queue: Mapping[str, str] | None = None
        self.asked, self.answers = -ASK_EVERY, 0
        self.left: list[str] = []

    def check(self) -> None:
        """Refuse to start without submitit, without SLURM, or with what SLURM would not take.

        Raises:
            PrefoptError: says what to do.
        """
        extra("submitit", "slurm", "--on slurm")
        if self.rehearses:
            return
        if missing := [command for command in COMMANDS if shutil.which(command) is None]:
            raise PrefoptError(
                f"--on slurm needs SLURM's commands, and this machine has no {missing[0]}: start the study on a login node of the "
                "cluster, or rehearse it here with executor.slurm.cluster=local"
            )
        tried = subprocess.run(
            ["sbatch", "--test-only", *self._flags(), "--wrap", "true"], capture_output=True, text=True
        )
        if tried.returncode:
            raise PrefoptError(
                f"sbatch refuses what executor.slurm asks for: {' '.join(tried.stderr.split())}; `sinfo` lists partitions and "
                "their limits"
            )

    def send(self, job: SentJob) -> Any:
        """Submit it."""
        submitit = extra("submitit", "slurm", "--on slurm")
        settings, logs = self.settings, job.job.study_folder / "logs" / "slurm"
        logs.mkdir(parents=True, exist_ok=True)
        executor = submitit.AutoExecutor(logs, settings.cluster, **{f"{settings.cluster}_max_num_timeout": 1000})
        executor.update_parameters(**self._parameters(f"{job.job.study_folder.name} {job.job}".replace(" ", "-")))
        try:
            with _own_session() if self.rehearses else nullcontext():
                return executor.submit(SubmittedJob(job))
        except submitit.core.utils.FailedJobError as error:
            raise PrefoptError(f"sbatch has not taken {job.job}: {' '.join(str(error).split())}") from error

    def describe(self, handle: Any) -> tuple[str, str]:
        """Its number, and what it is."""
        return handle.job_id, _in_words(self.settings.cluster, handle.job_id)

    def look(self, sent: Sent) -> Outcome | Lost | None:
        """Read its result where there is one; else ask the queue whether it is still there."""
        there = self._is_there(sent.handle)
        folder = sent.handle.paths.folder
        with suppress(OSError):  # network file systems then look again what is in it
            folder.chmod(folder.stat().st_mode)
        if sent.handle.paths.result_pickle.exists():
            return self._result(sent)
        if there is not False:
            if there:
                sent.missing.clear()
            return None
        sent.missing.add(self.answers)
        if not self.rehearses and len(sent.missing) < MISSING:
            return None
        what = _in_words(self.settings.cluster, sent.handle.job_id)
        return Lost(f"{what} ended without a result", f"what it printed: {sent.handle.paths.stderr}")

    def taken_up(self, job: Job) -> Any:
        """The submitted job that an earlier process of this study left, where it is still in the queue or runs."""
        place = read_place(queued_file(job.study_folder, job.name, job.seed))
        if place.get("queue") != self.name or place.get("within") != _in_words(
            self.settings.cluster, str(place.get("id"))
        ):
            return None
        submitit = extra("submitit", "slurm", "--on slurm")
        kind = submitit.LocalJob if self.rehearses else submitit.SlurmJob
        handle = kind(job.study_folder / "logs" / "slurm", place["id"])
        if self.queue is None and not self.rehearses:
            self._ask()
        return handle if self._is_there(handle) else None

    def withdraw_waiting(self) -> None:
        """Take jobs out of the queue that have not begun."""
        pending = [sent.handle.job_id for sent in self.sent if (self.queue or {}).get(sent.handle.job_id) == "PENDING"]
        if pending:
            subprocess.run(["scancel", "--state=PENDING", *pending], check=False, capture_output=True)
            self.queue = None  # until it is asked again

    def __exit__(self, *error: object) -> None:
        """Cancel what was submitted and has not ended; after Ctrl-C leave it, if the settings say so."""
        interrupted = isinstance(error[0], type) and issubclass(error[0], KeyboardInterrupt) if error else False
        if interrupted and self.settings.interrupt == "leave":
            self.left = [sent.handle.job_id for sent in self.sent]
            return
        for sent in self.sent:
            self._cancel(sent.handle.job_id)
            queued_file(sent.job.study_folder, sent.job.name, sent.job.seed).unlink(missing_ok=True)
        self.sent = []

    def left_running(self) -> str:
        """Which jobs go on after Ctrl-C."""
        if not self.left:
            return ""
        jobs = "the submitted job goes on" if len(self.left) == 1 else f"{len(self.left)} submitted jobs go on"
        ids = some_of(self.left, 5)
        return f"{jobs} ({ids}), and the same command takes up what it does; with --stop runs save and end after their step"

    def _cancel(self, id: str) -> None:
        with suppress(OSError):
            if self.rehearses:
                os.killpg(
                    int(id), signal.SIGKILL
                )  # its controller and its run; on SIGINT the former prints a traceback here
            else:
                subprocess.run(["scancel", id], check=False, capture_output=True)

    def _result(self, sent: Sent) -> Outcome:
        submitit = extra("submitit", "slurm", "--on slurm")
        try:
            return Outcome(sent.job, sent.handle.result())
        except (submitit.core.utils.FailedJobError, submitit.core.utils.UncompletedJobError) as error:
            lines = [line for line in str(error).splitlines() if line.strip()]
            why = next((line for line in reversed(lines) if "Error" in line), lines[0])
            return record_failure(sent.job, why.strip(), str(error))

    def _is_there(self, handle: Any) -> bool | None:
        """Whether the queue has a job, waiting or running; None where it does not say."""
        if self.rehearses:
            return _is_alive(handle)
        if time.monotonic() - self.asked > ASK_EVERY:
            self._ask()
        return None if self.queue is None else handle.job_id in self.queue

    def _ask(self) -> None:
        """The states of this user's jobs; a controller that does not answer is asked again later."""
        self.asked = time.monotonic()
        command = ["squeue", "--noheader", "--array", "--user", getpass.getuser(), "--format", "%i %T"]
        try:
            answer = subprocess.run(command, capture_output=True, text=True, timeout=60)
        except subprocess.TimeoutExpired:
            self.queue = None
            return
        lines = [line.split() for line in answer.stdout.splitlines()]
        self.queue = {line[0]: line[1] for line in lines if len(line) == 2} if answer.returncode == 0 else None
        self.answers += self.queue is not None

    def _flags(self) -> list[str]:
        """What a job asks for, as options of sbatch."""
        settings = self.settings
        asked = {
            "partition": settings.partition,
            "time": settings.minutes,
            "cpus-per-task": settings.cpus,
            "gpus-per-node": settings.gpus or None,
            "mem": settings.memory and f"{int(settings.memory * 1024)}M",
            "account": settings.account,
            "qos": settings.qos,
            "constraint": settings.constraint,
            **settings.sbatch,
        }
        given = {
            key.replace("_", "-"): value for key, value in asked.items() if value is not None and value is not False
        }
        return [f"--{key}" if value is True else f"--{key}={value}" for key, value in given.items()]

    def _parameters(self, name: str) -> dict[str, Any]:
        """The same, as submitit names them."""
        settings = self.settings
        common = {
            "name": name,
            "timeout_min": settings.minutes,
            "cpus_per_task": settings.cpus,
            "gpus_per_node": settings.gpus,
            "mem_gb": settings.memory,
        }
        if self.rehearses:
            return common
        return common | {
            "slurm_partition": settings.partition,
            "slurm_account": settings.account,
            "slurm_qos": settings.qos,
            "slurm_constraint": settings.constraint,
            "slurm_signal_delay_s": settings.grace,
            "slurm_setup": list(settings.setup) or None,
            "slurm_additional_parameters": dict(settings.sbatch) or None,
        }


def _in_words(cluster: str, id: str) -> str:
    return f"SLURM job {id}" if cluster == "slurm" else f"submitit job {id}"


@contextmanager
def _own_session() -> Iterator[None]:
    """What submitit's local executor (1.5) starts meanwhile has a session of its own.

    Ctrl-C in a terminal goes to all processes of its group, and would end jobs that the study is to leave.
    """
    from submitit.local import local

    whole = local.subprocess
    local.subprocess = SimpleNamespace(Popen=partial(subprocess.Popen, start_new_session=True))  # type: ignore[assignment]
    try:
        yield
    finally:
        local.subprocess = whole


def _is_alive(handle: Any) -> bool:
    """Whether the process of a rehearsed job is there."""
    if handle.state == "RUNNING":
        return True
    if not handle.state.startswith("NO PROCESS"):
        return False
    try:  # begun by an earlier process of the study
        os.kill(int(handle.job_id), 0)
    except OSError:
        return False
    return True


@dataclass(frozen=True)
class SubmittedJob:
    """What submitit runs: a job that makes room when it is told to, and asks to be queued again."""

    sent: SentJob

    def __call__(self) -> str | None:
        """Run it to its end.

        Returns:
            Why it failed; None where it finished.
        """
        import submitit

        here = submitit.JobEnvironment()
        room = _Room(getattr(signal, f"SIG{here.USR_SIG}"))
        outcome = self.sent.perform(_in_words(here.cluster, here.job_id), room.wanted)
        if outcome.error == PREEMPTED:
            note_queued(
                *(self.sent.job.study_folder, self.sent.job.name, self.sent.job.seed),
                *("slurm", here.job_id, _in_words(here.cluster, here.job_id)),
            )
            room.make()
        return outcome.error

    def checkpoint(self) -> Any:
        """The same again: what was done so far is in the run's folder."""
        import submitit

        return submitit.helpers.DelayedSubmission(self)


class _Room:
    """Takes over from submitit the signals that ask a process to make room, until its run has saved a checkpoint.

    SLURM sends the user's signal before the time limit, and where so configured at preemption; SIGTERM at preemption and where a
    job is cancelled. submitit would leave on the first within a step, and ignore the second.

    Args:
        signal_of_user: the first.
    """

    def __init__(self, signal_of_user: int):
        self.number, self.received, self.parent = signal_of_user, set[int](), os.getppid()
        self.queue_again: Any = signal.getsignal(signal_of_user)
        for number in (signal_of_user, signal.SIGTERM):
            signal.signal(number, self._receive)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self.received.add(number)

    def wanted(self) -> bool:
        """Whether the run should save a checkpoint and end: a signal says so, or what started this process is gone."""
        return bool(self.received) or os.getppid() != self.parent

    def make(self) -> NoReturn:
        """End this process, and have the cluster begin it again if it was the user's signal; else whoever sent it decides."""
        if self.number in self.received:
            self.queue_again(self.number, None)  # submitit's handler, which does not return
        sys.exit(128 + signal.SIGTERM)
