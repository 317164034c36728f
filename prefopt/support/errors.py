"""The exception for errors that the user can correct."""

import difflib
from collections.abc import Iterable


class PrefoptError(Exception):
    """An error that the user can correct: the message says what was wrong, where, and what to do.

    The command line prints it without a traceback and exits with status 2.
    """


def nearest(name: str, known: Iterable[str]) -> str:
    """' Did you mean X?' for the known name most like `name`, or nothing."""
    match = difflib.get_close_matches(name, list(known), n=1)
    return f" Did you mean {match[0]!r}?" if match else ""
