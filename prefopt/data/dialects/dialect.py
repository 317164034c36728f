"""What a dialect is: the columns of a data set of the field, and how its rows become rows of a format."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

from prefopt.data.values import fail, list_of, number_of, shown
from prefopt.types import Message

Row = Mapping[str, Any]
NamedRow = tuple[str, Row]
"""How messages name a row (file:line), and its columns."""

Reader = Callable[[Iterator[NamedRow], Counter[str]], Iterator[NamedRow]]
"""Rows of a dialect as rows of a format; rows that are left out are counted by the reason."""


class LeftOut(Exception):  # noqa: N818 - a reason, and no error
    """Why a row is left out."""


@dataclass(frozen=True)
class Dialect:
    """A data set's own columns.

    Attributes:
        name: what `adapt` calls it.
        data: the data sets that have it, hub ids where they are there.
        columns: that all its rows have; by them it is recognised.
        format: what its rows become, of `FORMATS`; several where its values decide.
        reading: what is read from what, a clause that follows "read as NAME: ".
        read: does it.
        without: columns that its rows do not have; with one of them they are another dialect's, or a format's.
        shape: what else must hold of a row for it to be recognised.
        recognised: by its columns; one that is not must be named.
    """

    name: str
    data: str
    columns: tuple[str, ...]
    format: str
    reading: str
    read: Reader
    without: tuple[str, ...] = ()
    shape: Callable[[Row], bool] = lambda _: True
    recognised: bool = True

    def fits(self, row: Row) -> bool:
        """Whether a row is one of this dialect, by its columns and its shape."""
        named = row.keys() >= set(self.columns) and not any(row.get(name) is not None for name in self.without)
        return named and self.shape(row)


def each(change: Callable[[Row, str], Row]) -> Reader:
    """A reader that changes one row at a time.

    Args:
        change: a row and how messages name it → the row in a format; raises `LeftOut` to leave it out.
    """

    def read(rows: Iterator[NamedRow], left_out: Counter[str]) -> Iterator[NamedRow]:
        for where, row in rows:
            try:
                yield where, change(row, where)
            except LeftOut as reason:
                left_out[str(reason)] += 1

    return read


# Values of a row, or a refusal that names the row.


def present(row: Row, name: str, where: str) -> Any:
    """The value of a column that must have one."""
    if (value := row.get(name)) is None:
        fail(where, f"{name!r} is missing; the columns are {sorted(row)}")
    return value


def text(row: Row, name: str, where: str) -> str:
    """The text of a column that must have one."""
    value = present(row, name, where)
    if not isinstance(value, str):
        fail(where, f"{name!r} must be text, not {shown(value)}")
    return value


def number(row: Row, name: str, where: str) -> float:
    """The number of a column that must have one."""
    value = number_of(row.get(name), name, where)
    if value is None:
        fail(where, f"{name!r} has no number; every row of this dialect has one")
    return value


def mapping(row: Row, name: str, where: str) -> Row:
    """The object in a column that must have one."""
    value = present(row, name, where)
    if not isinstance(value, Mapping):
        fail(where, f"{name!r} must be an object, not {shown(value)}")
    return value


def records(row: Row, name: str, where: str) -> list[Row]:
    """The objects in a column's list."""
    values = list_of(present(row, name, where), name, where)
    for value in values:
        if not isinstance(value, Mapping):
            fail(where, f"{name!r} must hold objects, not {shown(value)}")
    return values


def contradicts(where: str, what: str) -> NoReturn:
    """Refuse a row whose columns say two things."""
    fail(where, f"{what}. Mend the row, or leave it out by a function that `source: {{adapt: file.py:function}}` names")


def asked(prompt: str, system: str = "") -> list[Message]:
    """A conversation that a user begins, after what the system says, if anything."""
    told: list[Message] = [{"role": "system", "content": system}] if system.strip() else []
    return [*told, {"role": "user", "content": prompt}]


def answered(texts: list[str]) -> list[list[Message]]:
    """Each text as the assistant's turn."""
    return [[{"role": "assistant", "content": one}] for one in texts]
