"""Where the time of a run goes: sections that nest, and how much of what was computed was of use.

    with profiling() as clock:
        with timed("data"):
            ...

Nothing is measured, at the cost of a call, unless somebody has asked for it. Then the device is waited for at both ends of a
section, which is why a profiled run is a little slower.
"""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field

import torch

NOTHING: AbstractContextManager = nullcontext()


@dataclass
class Section:
    """What was measured of one section.

    Attributes:
        seconds: with the sections in it.
        useful: tokens that went through a model.
        computed: the same with padding.
    """

    seconds: float = 0.0
    useful: int = 0
    computed: int = 0


@dataclass
class Clock:
    """Sections by their path, and the time of everything.

    Attributes:
        sections: ("evaluation", "sampling") is the sampling of evaluation.
        seconds: since the clock was started, set when it stops.
        path: of the section that is open.
        thread: whose sections are measured; what other threads do at the same time has no place in a sum.
    """

    sections: dict[tuple[str, ...], Section] = field(default_factory=dict)
    seconds: float = 0.0
    path: tuple[str, ...] = ()
    thread: int = field(default_factory=threading.get_ident)

    @contextmanager
    def section(self, name: str) -> Iterator[None]:
        """Measure what happens in this context; within itself a section is still the same one."""
        outer, self.path = self.path, self.path if self.path[-1:] == (name,) else (*self.path, name)
        inner = self.sections.setdefault(
            self.path, Section()
        )  # here, so that they come in the order of their beginning
        start = _now()
        try:
            yield
        finally:
            if self.path != outer:
                inner.seconds += _now() - start
            self.path = outer

    def count(self, useful: int, computed: int) -> None:
        """Tokens of the section that is open, and of all around it."""
        for depth in range(1, len(self.path) + 1):
            section = self.sections[self.path[:depth]]
            section.useful += useful
            section.computed += computed


_clock: Clock | None = None


@contextmanager
def profiling() -> Iterator[Clock]:
    """Measure what this thread does in this context."""
    global _clock
    clock, before = Clock(), _clock
    _clock, start = clock, _now()
    try:
        yield clock
    finally:
        clock.seconds, _clock = _now() - start, before


def timed(name: str) -> AbstractContextManager:
    """A section of the clock, where one runs."""
    clock = _clock
    return NOTHING if clock is None or clock.thread != threading.get_ident() else clock.section(name)


def counted(tokens: Callable[[], tuple[int, int]]) -> None:
    """Count tokens that go through a model, and the same with padding, where a clock runs; else they are not even added up."""
    clock = _clock
    if clock is not None and clock.thread == threading.get_ident():
        clock.count(*tokens())


def _now() -> float:
    """Seconds, when the device has done what it was told."""
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()
    return time.perf_counter()
