"""How many CPU threads each phase of the work computes with.

    with phase("decoding"):
        ...

Decoding a small model is thousands of parallel regions of microseconds, in which a thread more costs waiting; training is few large
ones, in which it pays. So a phase may have a number of its own. Outside of `phase` a process has the number of scoring.

`torch.set_num_threads` (torch 2.13 with OpenMP) takes less than a microsecond and holds for the thread that calls it, and for
those whose first parallel operation comes later: a phase therefore sets the number of the thread that it is in, also if that is
not the main one, and disturbs no other.
"""

import math
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, Self, get_args

import torch

Phase = Literal["decoding", "scoring", "training"]

PHASES: tuple[Phase, ...] = get_args(Phase)
"""Drawing completions; forward passes without gradient; forward and backward passes and the optimiser."""

AS_IT_IS: AbstractContextManager = nullcontext()


@dataclass(frozen=True)
class PhaseThreads:
    """CPU threads of each phase."""

    decoding: int
    scoring: int
    training: int

    @classmethod
    def alike(cls, number: int) -> Self:
        """One number for all."""
        return cls(number, number, number)

    @classmethod
    def of(cls, content: Any) -> Self | None:
        """Those that a file has: by phase, or one number, as older manifests do; None of anything else."""
        if isinstance(content, int) and content > 0:
            return cls.alike(content)
        numbers: list[Any] = [content.get(name) for name in PHASES] if isinstance(content, Mapping) else []
        return cls(*numbers) if numbers and all(isinstance(n, int) and n > 0 for n in numbers) else None

    def __str__(self) -> str:
        numbers = asdict(self)
        if len(set(numbers.values())) == 1:
            return str(self.scoring)
        return " · ".join(f"{name} {number}" for name, number in numbers.items())

    def in_words(self) -> str:
        """`2 threads`, or `threads: 1 for decoding, 2 for scoring, 2 for training`."""
        numbers = asdict(self)
        if len(set(numbers.values())) == 1:
            return f"{self.scoring} thread{'s' * (self.scoring != 1)}"
        return f"threads: {', '.join(f'{number} for {name}' for name, number in numbers.items())}"


_chosen: PhaseThreads | None = None


def phase(name: Phase) -> AbstractContextManager:
    """A context with the threads of a phase, to be entered at once; it nests, and what was before is there again after it."""
    if _chosen is None:
        return AS_IT_IS
    number = getattr(_chosen, name)
    return AS_IT_IS if number == torch.get_num_threads() else at_threads(number)


@contextmanager
def at_threads(number: int) -> Iterator[None]:
    """A context in which this thread computes with so many."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def use(threads: PhaseThreads) -> None:
    """From here on phases have these numbers, and what is in no phase that of scoring; within `threads_restored`."""
    global _chosen
    _chosen = threads
    torch.set_num_threads(threads.scoring)


def threads_of_phases() -> PhaseThreads:
    """Those that phases have now."""
    return PhaseThreads.alike(torch.get_num_threads()) if _chosen is None else _chosen


@contextmanager
def threads_restored() -> Iterator[None]:
    """A context that begins without numbers of phases, and after which they and the number of threads are as before."""
    global _chosen
    before, threads = _chosen, torch.get_num_threads()
    _chosen = None
    try:
        yield
    finally:
        _chosen = before
        torch.set_num_threads(threads)


def usable_cores() -> int:
    """Cores that this process may use, by its affinity and by the quota of its control group."""
    own = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, math.ceil(min(own, _quota())))


def busy_elsewhere(seconds: float = 0.2) -> int:
    """Cores that others than this process use now, as a whole number, over a moment; 0 where the system does not say (no Linux).

    What the hypervisor gives to other machines counts as theirs.
    """
    try:
        (busy, total), own = _clocks(), time.process_time()
        time.sleep(seconds)
        (busy_then, total_then), own_then = _clocks(), time.process_time()
    except (OSError, ValueError):
        return 0
    if total_then <= total:
        return 0
    cores = os.cpu_count() or 1
    return max(0, round(cores * (busy_then - busy) / (total_then - total) - (own_then - own) / seconds))


def _clocks() -> tuple[int, int]:
    """Ticks of all cores since the start of the machine: busy ones, and all (proc(5))."""
    user, nice, system, idle, waiting, *others = map(int, Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9])
    busy = user + nice + system + sum(others)
    return busy, busy + idle + waiting


def _quota(root: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> float:
    """Cores that the control groups around this process give it at a time (cgroup v2's `cpu.max`, v1's `cfs_quota_us`)."""
    try:
        lines = own.read_text().splitlines()
    except OSError:
        return math.inf  # no Linux
    named = next((line.removeprefix("0::") for line in lines if line.startswith("0::")), "/")
    # In a container the root may be the group itself, and the name one of outside.
    group = root / named.lstrip("/")
    files = [folder / "cpu.max" for folder in (group, *group.parents) if folder.is_relative_to(root)]
    found = [_cores(*_words(file)) for file in files]
    v1 = root / "cpu"
    found.append(_cores(*_words(v1 / "cpu.cfs_quota_us"), *_words(v1 / "cpu.cfs_period_us")))
    return min(found)


def _words(file: Path) -> list[str]:
    try:
        return file.read_text().split()
    except OSError:
        return []


def _cores(quota: str = "max", period: str = "100000") -> float:
    limited = quota.isdigit() and period.isdigit() and int(period) > 0  # "max", and -1 in v1, are none
    return int(quota) / int(period) if limited else math.inf
