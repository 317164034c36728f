"""Where a function, or the methods of an object that an episode has of its own, are called: in this process or in a child."""

import time
from collections.abc import Mapping
from functools import cache
from typing import Any

from prefopt.environments.child import ENDED, Child, Limits, Reply
from prefopt.environments.functions import Function, tools_of
from prefopt.environments.in_child import answer
from prefopt.support.errors import PrefoptError
from prefopt.support.seeds import seed_for


@cache
def _serving(function: Any, limits: Limits) -> Child:
    """The child of a function, which all episodes share, for it keeps nothing from one call to the next."""
    return Child(function, limits)


class Toolbox:
    """The tools of one function or class, for one episode at a time.

    Attributes:
        target: a function; or a class, called without arguments at each beginning.
        limits: of a child process; None for those that the class states, or else this process, without any. A class that runs what
            a policy wrote says so by `runs_code = True`: it always has a child, which is confined.

    Raises:
        PrefoptError: no tools, or none that a child could find.
    """

    def __init__(self, target: Any, limits: Limits | None = None):
        self.functions: dict[str, Function] = {function.name: function for function in tools_of(target)}
        self.target = target
        self.limits = limits or (Limits() if getattr(target, "runs_code", False) else None)
        self._object: Any = None
        self._child: Child | None = None
        if self.limits is not None:
            self._child = self._own(self.limits) if self._has_state else _serving(target, self.limits)

    @property
    def _has_state(self) -> bool:
        return isinstance(self.target, type)

    def _own(self, limits: Limits) -> Child:
        return Child(self.target, limits, confined=getattr(self.target, "runs_code", False))

    def begin(self, row: Mapping[str, Any], seed: int) -> Any:
        """A new object, where there is one; what its `reset(row, seed)` returns, or None.

        Raises:
            PrefoptError: it raised something, or came to an end.
        """
        self.close()
        self._row, self._seed, self._calls = dict(row), seed, 0
        if not self._has_state:
            return None
        if self._child is None:
            self._object = self.target()
        return self.of_object("reset", row=self._row, seed=seed)

    def call(self, name: str, arguments: Mapping[str, Any], characters: int, end: float) -> Reply:
        """What a tool answers, in at most so many characters, at the latest when `time.monotonic()` is `end` if it has a child.

        Raises:
            PrefoptError: a child that cannot load its function, or an object that cannot begin again after its end.
        """
        method = name if self._has_state else None
        if self._child is None:
            called = self._object if self._has_state else self.target
            return Reply.of(answer(called, method, dict(arguments), characters))
        if (seconds := end - time.monotonic()) <= 0:
            return Reply(kind="time")
        self._calls += 1
        seed = seed_for(self._seed, "tool", self._calls)
        reply = self._child.call(method, arguments, characters, seed, seconds)
        if reply.kind in ENDED and self._has_state:
            self.of_object("reset", row=self._row, seed=self._seed)
        return reply

    def of_object(self, method: str, **arguments: Any) -> Any:
        """What a method of the object that is no tool returns; None where it has no such method.

        Raises:
            PrefoptError: it raised something, or came to an end.
        """
        if not hasattr(self.target, method):
            return None
        if self._child is None:
            return getattr(self._object, method)(**arguments)
        reply = self._child.call(method, arguments, None, seed_for(self._seed, method))
        if reply.kind:
            raise PrefoptError(f"{self.target.__qualname__}.{method}: {reply.value or _ENDS[reply.kind]}")
        return reply.value

    def close(self) -> None:
        """End the object: its `close()`, where it has one, and its child."""
        if self._object is not None and hasattr(self._object, "close"):
            self._object.close()
        self._object = None
        if self._child is not None and self._has_state:
            self._child.close()


_ENDS = {"time": "it was not back in time", "memory": "it took too much memory", "died": "it ended its process"}
