"""What turns rows into rows of a format: a dialect that they are recognised as, one that is named, or a function of the user's."""

import itertools
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from prefopt.data.dialects import NamedRow, named, recognised, turned
from prefopt.support.errors import PrefoptError
from prefopt.support.given import Given
from prefopt.support.plugins import load_object


@dataclass(frozen=True)
class Readings:
    """How the rows of a data set were turned; complete when all are read.

    Attributes:
        dialects: what they were read as, and how that is read.
        left_out: how many rows were left out, by the reason.
    """

    dialects: dict[str, str] = field(default_factory=dict)
    left_out: Counter[str] = field(default_factory=Counter)

    def notes(self) -> tuple[str, ...]:
        """A line for each."""
        dialects = (f"read as {name}: {reading}" for name, reading in self.dialects.items())
        left_out = (f"{count} row{'s' * (count != 1)} left out: {reason}" for reason, count in self.left_out.items())
        return *dialects, *left_out


def adapted(rows: Iterator[NamedRow], adapt: str | None, folder: Path | None, readings: Readings) -> Iterator[NamedRow]:
    """Rows as one of the formats.

    Args:
        rows: of one file, function or data set.
        adapt: a dialect's name, or a function's path; None: a dialect where the first row is of one, else as they are.
        folder: where a function's file is looked for first.
        readings: where what is done is noted.

    Raises:
        PrefoptError: an unknown name; a row that cannot be turned (names it).
    """
    if adapt is not None and (isinstance(adapt, Given) or ":" in adapt):
        return _changed(rows, function_of(adapt, folder), str(adapt), readings.left_out)
    dialect = None if adapt is None else named(adapt)
    if dialect is None:
        first = next(rows, None)
        if first is None:
            return rows
        where, row = first
        dialect, rows = recognised(row, where), itertools.chain([first], rows)
    if dialect is None:
        return rows
    readings.dialects[dialect.name] = dialect.reading
    return turned(rows, dialect, readings.left_out)


def function_of(path: str, folder: Path | None) -> Callable[..., Any]:
    """The function that a path names.

    Raises:
        PrefoptError: there is none, or it is something else.
    """
    function = load_object(path, folder)
    if not callable(function):
        raise PrefoptError(f"{path} is {type(function).__name__}, not a function")
    return function


def mapping_of(row: Any, where: str) -> Mapping[str, Any]:
    """The row, if it is one.

    Raises:
        PrefoptError: it is something else.
    """
    if not isinstance(row, Mapping):
        raise PrefoptError(f"{where}: a row must be an object with column names, not {type(row).__name__}")
    return row


def _changed(
    rows: Iterator[NamedRow], change: Callable[..., Any], name: str, left_out: Counter[str]
) -> Iterator[NamedRow]:
    """Each row as the function returns it; errors name the row."""
    for where, row in rows:
        try:
            changed = change(row)
        except PrefoptError as error:
            raise PrefoptError(f"{where}: {error}") from None
        except (Exception, SystemExit) as error:  # a function of the user's raises what it likes
            raise PrefoptError(
                f"{where}: {name} cannot read this row ({type(error).__name__}: {error}); its columns are {sorted(row)}"
            ) from error
        if changed is None:
            left_out[f"{name} returned None"] += 1
        else:
            yield where, mapping_of(changed, where)
