"""A child process in which tools run, with limits of time and memory: what happens there never stops this process."""

import contextlib
import inspect
import json
import os
import pickle
import selectors
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prefopt.environments import in_child
from prefopt.support.errors import PrefoptError

LOADING = 120.0
"""Seconds that the modules of a tool may take to import."""

LONGEST_VALUE = 1_000_000
"""Bytes of a value that is no text for a policy."""

ENDED = ("time", "memory", "died")
"""What went wrong where it ended the process, and so the state of an object."""


@dataclass(frozen=True)
class Limits:
    """What tools may take in a child process.

    Attributes:
        seconds: of all calls of one turn together.
        megabytes: of memory, beside what loading the tools took; Linux alone keeps to it.

    Raises:
        ValueError: one that is not positive.
    """

    seconds: float = 10.0
    megabytes: int = 1024

    def __post_init__(self) -> None:
        if not (self.seconds > 0 and self.megabytes > 0):
            raise ValueError(f"limits are positive, got {self.seconds:g} seconds and {self.megabytes} megabytes")


@dataclass(frozen=True)
class Reply:
    """What came of a call.

    Attributes:
        value: what the tool returned, as text and cut, or what it raised.
        size: characters before they were cut.
        kind: what went wrong: "raised", "time", "memory" or "died"; "" for nothing.
    """

    value: Any = ""
    size: int = 0
    kind: str = ""

    @classmethod
    def of(cls, content: Any) -> "Reply":
        """What a process replied, which may be anything at all, for whatever runs there can write one."""
        if not isinstance(content, Mapping) or not {"value", "raised", "kind"} & set(content):
            return cls(kind="died")
        size = content.get("size", 0)
        if "value" in content and isinstance(size, int):
            return cls(content["value"], size)
        return cls(str(content.get("raised", "")), 0, "memory" if content.get("kind") == "memory" else "raised")


class Child:
    """One process that serves calls of one function, or of the methods of one object, until it is closed.

    It starts with its first call, and anew with the first call after its end; an object is then made anew, too.

    Attributes:
        target: the function or the class.
        limits: of each call.
        confined: for what runs code that a policy wrote: an empty folder to work in, and next to nothing of this process's
            environment, where keys and tokens are.

    Raises:
        PrefoptError: the target cannot be found from another process.
    """

    def __init__(self, target: Any, limits: Limits, confined: bool = False):
        self.where = _where(target)
        self.limits, self.confined = limits, confined
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()

    def call(
        self,
        method: str | None,
        arguments: Mapping[str, Any],
        characters: int | None,
        seed: int = 0,
        seconds: float = 0,
    ) -> Reply:
        """What the function or the method answers.

        Args:
            method: its name; None for a function.
            arguments: by name.
            characters: most of the answer's text; None asks for the value itself.
            seed: of the child's random numbers, for this call.
            seconds: that it may take; 0 for those of the limits.

        Raises:
            PrefoptError: the child cannot load its target.
        """
        request = {"method": method, "arguments": dict(arguments), "seed": seed, "characters": characters}
        most = LONGEST_VALUE if characters is None else 12 * characters + 1000  # as JSON writes them
        with self._lock:  # a caller may have given up on a call, whose thread waits on
            try:
                self._start()
                self._send(request)
                reply = self._receive(seconds or self.limits.seconds, most)
            except BaseException:  # what is still to come from it belongs to this call
                self._end()
                raise
            if reply.kind in ENDED:
                self._end()
            return reply

    def close(self) -> None:
        """End the process, and whatever it started; a call that another thread still waits for has died."""
        self._kill()
        with self._lock:
            self._end()

    def _kill(self) -> None:
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, signal.SIGKILL)

    def _end(self) -> None:
        self._kill()
        process, self._process = self._process, None
        if process is None:
            return
        process.wait()
        for descriptor in (self._requests, self._replies):
            os.close(descriptor)
        if self._folder:
            self._folder.cleanup()

    def __del__(self) -> None:
        with contextlib.suppress(Exception):  # at the interpreter's end little is left to end it with
            self._end()

    def _start(self) -> None:
        if self._process is not None:
            return
        self._folder = (
            tempfile.TemporaryDirectory(prefix="prefopt-tool-", ignore_cleanup_errors=True) if self.confined else None
        )
        folder = self._folder.name if self._folder else None
        incoming, self._requests = os.pipe()
        self._replies, outgoing = os.pipe()
        self._process = subprocess.Popen(
            [sys.executable, "-P", in_child.__file__, str(incoming), str(outgoing)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd=folder,
            env=_environment(folder),
            pass_fds=(incoming, outgoing),
            start_new_session=True,
        )
        os.close(incoming)
        os.close(outgoing)
        path = [entry or str(Path.cwd()) for entry in sys.path]
        self._send({"target": {**self.where, "path": path}, **vars(self.limits)})
        loaded = self._receive(LOADING, LONGEST_VALUE)
        if loaded.kind:
            raise PrefoptError(
                f"{self.where['name']} cannot be loaded in a child process: {loaded.value or loaded.kind}"
            )

    def _send(self, request: Mapping[str, Any]) -> None:
        left = memoryview(pickle.dumps(request))
        with contextlib.suppress(BrokenPipeError):  # it has died, which reading tells
            while left:
                left = left[os.write(self._requests, left) :]

    def _receive(self, seconds: float, most: int) -> Reply:
        end, line = time.monotonic() + seconds, b""
        with selectors.DefaultSelector() as ready:
            ready.register(self._replies, selectors.EVENT_READ)
            while not line.endswith(b"\n"):
                if not ready.select(max(0.0, end - time.monotonic())):
                    return Reply(kind="time")
                part = os.read(self._replies, 65536)
                line += part
                if not part or len(line) > most:
                    return Reply(kind="died")
        try:
            return Reply.of(json.loads(line))
        except ValueError:
            return Reply(kind="died")


def _environment(folder: str | None) -> dict[str, str]:
    own = dict(os.environ)
    if folder is not None:
        own = {
            "PATH": own.get("PATH", os.defpath),
            "HOME": folder,
            "TMPDIR": folder,
            "LANG": own.get("LANG", "C.UTF-8"),
        }
    # The same hashes in every child, so that a set prints alike; one thread, for a thread takes memory by its stack.
    return own | {"PYTHONHASHSEED": "0", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}


def _where(target: Any) -> dict[str, Any]:
    """How a child finds a function or a class.

    Raises:
        PrefoptError: it stands in no file, or within a function.
    """
    name = getattr(target, "__qualname__", type(target).__qualname__)
    module = sys.modules.get(target.__module__) if isinstance(target, type) or inspect.isfunction(target) else None
    file = getattr(module, "__file__", None)
    if module is None or file is None or "<" in name:
        raise PrefoptError(
            f"{name} cannot run in a child process, which finds functions and classes by their files: define it at the top level "
            "of one, or leave out `limits`, and it runs in this process"
        )
    return {"module": module.__name__, "file": os.path.abspath(file), "name": name}
