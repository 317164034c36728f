"""The exception for errors that the user can correct."""

import difflib
from collections.abc import Collection, Iterable


class PrefoptError(Exception):
    """An error that the user can correct: the message says what was wrong, where, and what to do.

    The command line prints it without a traceback and exits with status 2.
    """


class DivergenceError(PrefoptError):
    """Training came to numbers that are not finite, and would again with the same settings."""


def nearest(name: str, known: Iterable[str]) -> str:
    """' Did you mean X?' for the known name most like `name`, or nothing."""
    match = difflib.get_close_matches(name, list(known), n=1)
    return f" Did you mean {match[0]!r}?" if match else ""


def some_of(names: Collection[str], most: int = 3) -> str:
    """The first of several names, and how many more there are: `a, b, c and 4 more`."""
    first = ", ".join(list(names)[:most])
    return first + (f" and {len(names) - most} more" if len(names) > most else "")
