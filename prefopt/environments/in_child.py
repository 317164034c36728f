"""The program of a child process in which tools run, and the tool that runs Python there; imports nothing of prefopt.

The first request says what to load; then every request is one call, and every reply one line of JSON. Requests are pickled, for
they come from prefopt; replies are not, for they come from whatever ran here.
"""

import ast
import contextlib
import importlib.util
import io
import json
import linecache
import os
import pickle
import random
import signal
import sys
import traceback
from typing import Any

try:
    import resource
except ImportError:  # Windows has no limits of this kind
    resource = None  # type: ignore[assignment]


def main(requests: Any, replies: int) -> None:
    """Serve calls until there are no more requests; the descriptor of replies is what they are written to."""
    setup = pickle.load(requests)
    try:
        tools = load(**setup["target"])
        limit_memory(setup["megabytes"])
        _reply(replies, value=None)
    except BaseException as error:
        _reply(replies, raised=f"{type(error).__name__}: {error}")
        return
    while True:
        try:
            request = pickle.load(requests)
        except EOFError:
            return
        seed_randoms(request.pop("seed"))
        limit_time(setup["seconds"])
        _reply(replies, **answer(tools, **request))
        limit_time(None)


def load(module: str, file: str, name: str, path: list[str]) -> Any:
    """What a target names: a function, or an object of a class.

    The file alone is run, not the packages that it is in, unless it imports of them itself: that can take seconds.
    """
    sys.path[:] = path
    if file == os.path.abspath(__file__):
        target: Any = globals()[name]
    else:  # of the script that was run, `if __name__ == "__main__"` must not run again
        spec = importlib.util.spec_from_file_location("__mp_main__" if module == "__main__" else module, file)
        assert spec and spec.loader
        target = sys.modules[module] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(target)
        for part in name.split("."):
            target = getattr(target, part)
    return target() if isinstance(target, type) else target


def seed_randoms(seed: int) -> None:
    """Python's random numbers and, where a tool has loaded it, numpy's."""
    random.seed(seed)
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed(seed % 2**32)


def answer(tools: Any, method: str | None, arguments: dict[str, Any], characters: int | None) -> dict[str, Any]:
    """The reply to one call: its `value`, or the `kind` of what went wrong and what `raised`.

    Args:
        tools: a function, or an object.
        method: of the object.
        arguments: by name.
        characters: most of the value's text; None asks for the value itself, which JSON must be able to write.
    """
    try:
        value = (tools if method is None else getattr(tools, method))(**arguments)
        if characters is None:
            json.dumps(value)
            return {"value": value}
        text, size = as_text(value, characters)
        return {"value": text, "size": size}
    except KeyboardInterrupt:
        raise
    except MemoryError:
        return {"kind": "memory"}
    except BaseException as error:
        text = str(error) if isinstance(error, Failed) else f"error: {type(error).__name__}: {error}"
        return {"raised": as_text(text, characters or 1000)[0], "size": len(text)}


def as_text(value: Any, characters: int) -> tuple[str, int]:
    """What a policy reads of a tool's value, at most so many characters of it, and how many there would be.

    A text is itself, anything else as JSON, or as Python writes it where JSON cannot.
    """
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    readable = text[:characters].encode("utf-8", "replace").decode()  # half a surrogate pair is no character
    return readable, len(text)


class Failed(Exception):  # noqa: N818
    """What a tool was asked to do went wrong; the message is all that there is to say."""


class Python:
    """Python code as a tool: it runs in a child process of the episode's own, where names live from call to call.

    `source.rollouts.environment: {name: Tools, functions: [Python]}`. The child has little of this process's
    environment, so no keys and tokens, and begins in an empty folder; it has limits of time and memory. It is no security sandbox:
    code can read what this user can read, write what it can write, and use the network. Run policies that you do not trust in a
    container.
    """

    runs_code = True

    def __init__(self) -> None:
        self.names: dict[str, Any] = {"__name__": "__main__"}

    def python(self, code: str) -> str:
        """Run Python code. Returns what it prints, and the value of its last line. Names are kept for later calls.

        Args:
            code: The Python code.
        """
        printed = _First()
        with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
            try:
                linecache.cache["<code>"] = (len(code), None, code.splitlines(True), "<code>")  # for tracebacks
                self._run(ast.parse(code, "<code>"))
            except SystemExit:
                pass
            except MemoryError:
                raise
            except BaseException as error:
                shown = "".join(traceback.format_exception(error.with_traceback(_own(error))))
                raise Failed((printed.getvalue() + shown).rstrip()) from None
        return printed.getvalue().rstrip()

    def _run(self, tree: ast.Module) -> None:
        last = None
        if tree.body and isinstance(shown := tree.body[-1], ast.Expr):
            last = ast.Expression(shown.value)
            del tree.body[-1]
        exec(compile(tree, "<code>", "exec"), self.names)
        if last is not None:
            value = eval(compile(last, "<code>", "eval"), self.names)
            if value is not None:
                sys.displayhook(value)


class _First(io.StringIO):
    """Keeps the first million characters, and counts no further."""

    def write(self, text: str) -> int:
        room = 1_000_000 - self.tell()
        if room > 0:
            super().write(text[:room])
        return len(text)


def _own(error: BaseException) -> Any:
    """The traceback from the code's first line on; of code that cannot be compiled there is none."""
    here = error.__traceback__
    while here is not None and here.tb_frame.f_code.co_filename != "<code>":
        here = here.tb_next
    return here


def limit_memory(megabytes: int) -> None:
    """So much more than what is taken now; Linux alone has such a limit."""
    if resource is not None and os.path.exists("/proc/self/statm"):
        with open("/proc/self/statm", encoding="ascii") as file:
            pages = int(file.read().split()[0])
        most = pages * resource.getpagesize() + megabytes * 2**20
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
        resource.setrlimit(resource.RLIMIT_FSIZE, (megabytes * 2**20,) * 2)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def limit_time(seconds: float | None) -> None:
    """End this process a little after its time, where nobody is left to end it; None takes the limit back."""
    if hasattr(signal, "setitimer"):
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.setitimer(signal.ITIMER_REAL, 0 if seconds is None else seconds + 1)
    if resource is not None:
        used = sum(resource.getrusage(resource.RUSAGE_SELF)[:2])
        hard = resource.getrlimit(resource.RLIMIT_CPU)[1]
        soft = hard if seconds is None else int(used + seconds) + 2
        resource.setrlimit(resource.RLIMIT_CPU, (soft, hard))


def _reply(replies: int, **content: Any) -> None:
    os.write(replies, (json.dumps(content) + "\n").encode())


if __name__ == "__main__":
    incoming, outgoing = map(int, sys.argv[1:])
    for descriptor in (incoming, outgoing):  # not for processes that a tool starts
        os.set_inheritable(descriptor, False)
    main(os.fdopen(incoming, "rb"), outgoing)
