"""Jobs in several processes of this machine."""

import contextlib
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from multiprocessing import connection
from typing import Any

from prefopt.study.executors.executor import Executor, Outcome, record_failure
from prefopt.study.executors.performing import perform, set_up_process
from prefopt.study.jobs import Job
from prefopt.support.sharing import sharing

FOR_ALL = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)
"""Signals that job schedulers and terminals send to all processes of a job, one after another."""


class LocalProcesses(Executor):
    """Processes that each run one job after another and keep models and data between them.

    A process that dies costs only the job that it was running. Processes start Python anew, so a script that uses this must be
    guarded by `if __name__ == "__main__":`.

    Args:
        number: of processes; several GPUs are assigned to them in turn.
    """

    takes_stages = True

    def __init__(self, number: int):
        self.number = number
        self.idle: list[_Worker] = []
        self.working: dict[Any, tuple[_Worker, Job]] = {}

    def run(self, jobs: Sequence[Job]) -> Iterator[Outcome]:
        """Start the jobs in their order, as processes become free; one that reads from another waits until that has ended."""
        waiting = list(jobs)
        while waiting or self.working:
            while len(self.working) < self.number and (job := first_ready(waiting, self._worked_on())):
                waiting.remove(job)
                self._assign(job)
            for pipe in connection.wait(list(self.working)):
                worker, job = self.working.pop(pipe)
                try:
                    outcome = worker.pipe.recv()
                    self.idle.append(worker)
                except EOFError:
                    worker.process.join()
                    if -(worker.process.exitcode or 0) in FOR_ALL:
                        time.sleep(1)  # the signal that asks this process to end, too, may still be on its way
                    why = f"its process ended with exit code {worker.process.exitcode}"
                    outcome = record_failure(job, why, f"{why}: killed, or out of memory\n")
                yield outcome

    def _worked_on(self) -> list[Job]:
        return [job for _, job in self.working.values()]

    def _assign(self, job: Job) -> None:
        """Give a job to an idle process, or to a new one."""
        places = {worker.place for worker in (*self.idle, *(worker for worker, _ in self.working.values()))}
        worker = self.idle.pop() if self.idle else _started(min(set(range(self.number)) - places))
        self.working[worker.pipe] = (worker, job)
        with contextlib.suppress(OSError):  # it died while idle: `run` then reads the end of file
            worker.pipe.send(job)

    def __exit__(self, *error: object) -> None:
        """Let idle processes end, and stop those that work; their runs stay unfinished and can be continued."""
        for worker in self.idle:
            with contextlib.suppress(OSError):
                worker.pipe.send(None)
        for worker, _ in self.working.values():
            worker.process.terminate()
        for worker in (*self.idle, *(worker for worker, _ in self.working.values())):
            worker.process.join()
        self.idle, self.working = [], {}


def first_ready(waiting: Sequence[Job], working: Sequence[Job]) -> Job | None:
    """The first job that waits and reads from none which waits or is worked on; None where there is none.

    One that reads from a job which has failed is ready: it is to say so.
    """
    open_folders = {job.folder for job in (*waiting, *working)}
    return next((job for job in waiting if open_folders.isdisjoint(job.after)), None)


@dataclass(frozen=True)
class _Worker:
    process: Any
    pipe: Any
    place: int


def _started(place: int) -> _Worker:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_work, args=(theirs, _device(place)), daemon=True)
    process.start()
    theirs.close()  # a death is seen as end of file, and only if no other process holds this end
    return _Worker(process, ours, place)


def _device(place: int) -> str | None:
    """The GPU of a process, as CUDA_VISIBLE_DEVICES names it."""
    import torch

    listed = os.environ.get("CUDA_VISIBLE_DEVICES")
    devices = listed.split(",") if listed else [str(number) for number in range(torch.cuda.device_count())]
    return devices[place % len(devices)] if devices else None


def _work(pipe: Any, device: str | None) -> None:
    """The main function of a process."""
    if device is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = device
    for number in (
        signal.SIGINT,
        signal.SIGHUP,
    ):  # they reach the whole process group; the parent decides what they mean
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_exit_with_parent, daemon=True).start()
    set_up_process()
    with sharing():
        while (job := pipe.recv()) is not None:
            pipe.send(perform(job))


def _exit_with_parent() -> None:
    """End this process when the study is killed, so that nothing writes into its folder afterwards."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    connection.wait([parent.sentinel])
    os._exit(1)
