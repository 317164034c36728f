"""Dialects: the data sets of the field whose columns are their own, recognised by them or named by `source.adapt`."""

from collections import Counter
from collections.abc import Iterator, Mapping

from prefopt.data.dialects.argilla import ARGILLA
from prefopt.data.dialects.compared import COMPARED
from prefopt.data.dialects.dialect import Dialect, NamedRow, Row
from prefopt.data.dialects.label_studio import LABEL_STUDIO
from prefopt.data.dialects.rated import RATED
from prefopt.data.dialects.transcripts import TRANSCRIPTS
from prefopt.data.values import fail
from prefopt.support.errors import PrefoptError, nearest

DIALECTS: Mapping[str, Dialect] = {one.name: one for one in (*RATED, *COMPARED, *TRANSCRIPTS, ARGILLA, LABEL_STUDIO)}
"""All of them, by the name that `adapt` has for them."""

__all__ = ["DIALECTS", "Dialect", "NamedRow", "named", "recognised", "turned"]


def named(name: str) -> Dialect:
    """The dialect that `adapt` names.

    Raises:
        PrefoptError: there is none of this name.
    """
    if name not in DIALECTS:
        raise PrefoptError(
            f"source.adapt: {name!r} is no dialect.{nearest(name, DIALECTS)} There are {', '.join(DIALECTS)}; a function of "
            "yours is file.py:function"
        )
    return DIALECTS[name]


def recognised(row: Row, where: str) -> Dialect | None:
    """The dialect of a row, if its columns are those of one.

    Raises:
        PrefoptError: they are read in two ways, which answer two questions; says which there are.
    """
    fitting = [one for one in DIALECTS.values() if one.recognised and one.fits(row)]
    if len(fitting) > 1:
        ways = "; ".join(f"`adapt: {one.name}` ({one.reading})" for one in fitting)
        fail(
            where,
            f"rows of {fitting[0].data} answer more than one question. Say under `source` which one you ask: {ways}",
        )
    return fitting[0] if fitting else None


def turned(rows: Iterator[NamedRow], dialect: Dialect, left_out: Counter[str]) -> Iterator[NamedRow]:
    """The rows of a dialect as rows of a format.

    Raises:
        PrefoptError: a row lacks a column of the dialect, or its values do not fit or contradict each other.
    """
    return dialect.read(_checked(rows, dialect), left_out)


def _checked(rows: Iterator[NamedRow], dialect: Dialect) -> Iterator[NamedRow]:
    for where, row in rows:
        if missing := [name for name in dialect.columns if name not in row]:
            fail(
                where,
                f"this row is read as {dialect.name}, and has no {', '.join(map(repr, missing))}; its columns are {sorted(row)}",
            )
        yield where, row
