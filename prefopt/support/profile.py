"""Profiling a run: seconds by nested section, those of all its threads, and how many of the computed tokens were padding.

    with profiling() as clock:
        with timed("data"):
            ...

Without `profiling` nothing is measured, and `timed` costs one function call. With it the device is synchronised at both ends of
every section, so a profiled run is a little slower.
"""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field

import torch

NO_SECTION: AbstractContextManager = nullcontext()


@dataclass
class Section:
    """Measurements of one section.

    Attributes:
        seconds: including the sections nested in it.
        processor: seconds of all threads of the process together; cores that wait for each other count, if they do so awake.
        useful: tokens that went through a model, without padding.
        computed: tokens that went through a model, with padding.
    """

    seconds: float = 0.0
    processor: float = 0.0
    useful: int = 0
    computed: int = 0


@dataclass
class Clock:
    """Measurements of all sections, by path.

    Attributes:
        sections: ("evaluation", "sampling") is the sampling of evaluation.
        seconds: between start and stop; set when the clock stops.
        processor: of all threads meanwhile; likewise.
        path: of the section that is open.
        thread: the one that is measured; other threads run at the same time, so their seconds would not add up.
    """

    sections: dict[tuple[str, ...], Section] = field(default_factory=dict)
    seconds: float = 0.0
    processor: float = 0.0
    path: tuple[str, ...] = ()
    thread: int = field(default_factory=threading.get_ident)

    @contextmanager
    def section(self, name: str) -> Iterator[None]:
        """Measure a context. A section opened within itself is the same section."""
        outer, self.path = self.path, self.path if self.path[-1:] == (name,) else (*self.path, name)
        inner = self.sections.setdefault(
            self.path, Section()
        )  # at the start, so that sections are in the order of starting
        start, processor = _now(), time.process_time()
        try:
            yield
        finally:
            if self.path != outer:
                inner.seconds += _now() - start
                inner.processor += time.process_time() - processor
            self.path = outer

    @property
    def explained(self) -> float:
        """The share of the time that is in a section."""
        outermost = sum(section.seconds for path, section in self.sections.items() if len(path) == 1)
        return outermost / max(self.seconds, 1e-9)

    def count(self, useful: int, computed: int) -> None:
        """Add tokens to the open section and all that contain it."""
        for depth in range(1, len(self.path) + 1):
            section = self.sections[self.path[:depth]]
            section.useful += useful
            section.computed += computed


_clock: Clock | None = None


@contextmanager
def profiling(began: float | None = None) -> Iterator[Clock]:
    """Measure this thread while the context lasts.

    Args:
        began: when the command did, by `time.perf_counter`; what came since is the section `starting`, which is imports mostly.
    """
    global _clock
    clock, before = Clock(), _clock
    earlier = 0.0 if began is None else time.perf_counter() - began
    if earlier:
        clock.sections["starting",] = Section(earlier)
    processor = time.process_time()
    _clock, start = clock, _now()
    try:
        yield clock
    finally:
        clock.seconds, _clock = earlier + _now() - start, before
        clock.processor = time.process_time() - processor


def timed(name: str) -> AbstractContextManager:
    """A section of the running clock; without one, a context that does nothing."""
    clock = _clock
    return NO_SECTION if clock is None or clock.thread != threading.get_ident() else clock.section(name)


def counted(tokens: Callable[[], tuple[int, int]]) -> None:
    """Count tokens without and with padding that go through a model. `tokens` is called only while a clock runs."""
    clock = _clock
    if clock is not None and clock.thread == threading.get_ident():
        clock.count(*tokens())


def _now() -> float:
    """Seconds, after the device has finished its work."""
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()
    return time.perf_counter()
