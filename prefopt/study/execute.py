"""Runs and labellings of a study, one after another or in several processes. None takes the others down."""

import contextlib
import gc
import multiprocessing
import os
import signal
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing import connection
from pathlib import Path
from typing import Any

from rich.console import Console

from prefopt.study.job import Piece, finished
from prefopt.support.allocator import keep_freed_memory
from prefopt.support.files import unused, write_whole
from prefopt.support.sharing import sharing


@dataclass(frozen=True)
class Outcome:
    """What became of a job.

    Attributes:
        job: which.
        error: why it came to no end, in a line; None where it did.
    """

    job: Piece
    error: str | None = None


Executor = Callable[[Sequence[Piece]], Iterator[Outcome]]


def one_by_one(jobs: Sequence[Piece]) -> Iterator[Outcome]:
    """In this process, which keeps models and data from run to run."""
    with sharing():
        for job in jobs:
            yield attempt(job)


def attempt(job: Piece) -> Outcome:
    """Run it; what goes wrong is written to error.txt in the run folder, where partial work stays.

    What is unfinished goes on as far as it can, or else begins again in the same folder.
    """
    try:
        if missing := [folder for folder in job.after if not finished(folder)]:
            raise RuntimeError(f"{missing[0]} is not finished, and this run reads from it")
        _make_room(job)
        with _log(job) as console:
            job.make(console)
        return Outcome(job)
    except Exception as error:
        return failed(job, f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}", traceback.format_exc())
    finally:
        gc.collect()  # models and optimisers hold each other


def failed(job: Piece, why: str, details: str) -> Outcome:
    """Write down that it did."""
    job.folder.mkdir(parents=True, exist_ok=True)
    write_whole(job.folder / "error.txt", details)
    return Outcome(job, why)


def _make_room(job: Piece) -> None:
    """A folder that can be resumed stays, its old error under another name; what cannot is moved aside."""
    if not job.folder.exists():
        return
    if (job.folder / "recipe.yaml").exists():
        if (error := job.folder / "error.txt").exists():
            error.rename(unused(job.folder / "error-before.txt"))
        return
    aside = _study_folder(job) / "aside" / f"{job.name}-seed-{job.seed}"
    aside.parent.mkdir(exist_ok=True)
    job.folder.rename(unused(aside))


@contextlib.contextmanager
def _log(job: Piece) -> Iterator[Console]:
    """What a person would see of the run goes to logs/."""
    file = _study_folder(job) / "logs" / f"{job.name}-seed-{job.seed}.txt"
    file.parent.mkdir(exist_ok=True)
    with file.open("a", encoding="utf-8") as text:
        yield Console(file=text, width=120)


def _study_folder(job: Piece) -> Path:
    """The folder that has `arms`, `stages` or `tuning`, in which the run folder is."""
    return next(f.parent for f in job.folder.parents if f.name in ("arms", "stages", "tuning") and _is_study(f.parent))


def _is_study(folder: Path) -> bool:
    return (folder / "study.yaml").exists()


class Workers:
    """Processes that each do one job after another and keep what is loaded. One that dies costs its own job alone.

    Args:
        number: of processes; GPUs are dealt to them in turn.
    """

    def __init__(self, number: int):
        self.number = number
        self.idle: list[_Worker] = []
        self.working: dict[Any, tuple[_Worker, Piece]] = {}

    def __call__(self, jobs: Sequence[Piece]) -> Iterator[Outcome]:
        """Do the jobs, in this order as processes come free; outcomes come as they are done."""
        waiting = list(reversed(jobs))
        while waiting or self.working:
            while waiting and len(self.working) < self.number:
                self._hand(waiting.pop())
            for pipe in connection.wait(list(self.working)):
                worker, job = self.working.pop(pipe)
                try:
                    outcome = worker.pipe.recv()
                    self.idle.append(worker)
                except EOFError:
                    worker.process.join()
                    why = f"its process ended with exit code {worker.process.exitcode}"
                    outcome = failed(job, why, f"{why}: killed, or out of memory\n")
                yield outcome

    def _hand(self, job: Piece) -> None:
        """Give a job to an idle process, or to a new one."""
        places = {worker.place for worker in (*self.idle, *(worker for worker, _ in self.working.values()))}
        worker = self.idle.pop() if self.idle else _started(min(set(range(self.number)) - places))
        self.working[worker.pipe] = (worker, job)
        with contextlib.suppress(OSError):  # it died while idle: then there is an end of file to read
            worker.pipe.send(job)

    def close(self) -> None:
        """Send idle processes home and stop those that work, which leaves their runs unfinished."""
        for worker in self.idle:
            with contextlib.suppress(OSError):
                worker.pipe.send(None)
        for worker, _ in self.working.values():
            worker.process.terminate()
        for worker in (*self.idle, *(worker for worker, _ in self.working.values())):
            worker.process.join()
        self.idle, self.working = [], {}


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
    theirs.close()  # the end of file that tells of a death comes only if nobody else holds this end
    return _Worker(process, ours, place)


def _device(place: int) -> str | None:
    """The GPU of a process, as CUDA_VISIBLE_DEVICES names it."""
    import torch

    listed = os.environ.get("CUDA_VISIBLE_DEVICES")
    devices = listed.split(",") if listed else [str(number) for number in range(torch.cuda.device_count())]
    return devices[place % len(devices)] if devices else None


def _work(pipe: Any, device: str | None) -> None:
    """What a process does."""
    if device is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = device
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides
    threading.Thread(target=_die_with_parent, daemon=True).start()
    from prefopt.support.logs import quiet_libraries

    quiet_libraries()
    keep_freed_memory()
    with sharing():
        while (job := pipe.recv()) is not None:
            pipe.send(attempt(job))


def _die_with_parent() -> None:
    """A killed study must leave nobody behind who writes into its folder."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    connection.wait([parent.sentinel])
    os._exit(1)
