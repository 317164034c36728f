"""Calls of users' code that may take only so long."""

import threading
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


class LateError(Exception):
    """A call was not back in time."""


def within(seconds: float | None, name: str, call: Callable[[], T]) -> T:
    """What a call of a user's returns, or raises, if it is back in time.

    Args:
        seconds: that it may take; None is any time.
        name: of the thread.
        call: what goes on in a thread to which nobody listens if it takes longer, because Python cannot stop one.

    Raises:
        LateError: it took longer.
        RuntimeError: in the place of `SystemExit` and others that are no `Exception`.
    """
    results: list[T] = []
    errors: list[Exception] = []

    def listened() -> None:
        try:
            results.append(call())
        except Exception as error:
            errors.append(error)
        except BaseException as error:
            if seconds is None and isinstance(error, KeyboardInterrupt):
                raise
            errors.append(RuntimeError(f"{type(error).__name__}: {error}"))

    if seconds is None:
        listened()
    else:
        # A daemon, so that a call which never returns cannot keep the program from ending.
        thread = threading.Thread(target=listened, name=name, daemon=True)
        thread.start()
        thread.join(seconds)
        if thread.is_alive():
            raise LateError
    if errors:
        raise errors[0]
    return results[0]
