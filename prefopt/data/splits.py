"""Train, validation and test parts, assigned by a hash of a row's group and the seed."""

from array import array
from collections.abc import Iterable
from hashlib import blake2b
from itertools import accumulate
from typing import Generic, NamedTuple, Protocol, TypeVar

from prefopt.data.disk_rows import DiskRows, Located
from prefopt.support.errors import PrefoptError


class Grouped(Located, Protocol):
    """Anything with a group, such as an `Example`."""

    @property
    def group(self) -> str:
        """Rows of one group never straddle a split."""
        ...


GroupedRow = TypeVar("GroupedRow", bound=Grouped)


class Split(NamedTuple, Generic[GroupedRow]):
    """Three disjoint parts of the rows, each in the order of the rows."""

    train: DiskRows[GroupedRow]
    validation: DiskRows[GroupedRow]
    test: DiskRows[GroupedRow]


def split(
    rows: Iterable[GroupedRow], fractions: tuple[float, float, float] = (0.8, 0.1, 0.1), seed: int = 0
) -> Split[GroupedRow]:
    """Rows into train, validation and test.

    Which part a group goes to depends on its name and the seed alone, so adding, removing or reordering rows moves no other row.
    The fractions are therefore those of the groups, and hold in expectation.

    Raises:
        PrefoptError: fractions that are negative or whose sum is not 1.
    """
    rows = DiskRows.of(rows)
    train, validation, test = divided(rows, fractions, seed)
    return Split(rows.select(train), rows.select(validation), rows.select(test))


def divided(rows: Iterable[GroupedRow], fractions: tuple[float, float, float], seed: int) -> tuple[array, array, array]:
    """The row numbers of each part of a `split`."""
    if len(fractions) != 3 or min(fractions) < 0 or abs(sum(fractions) - 1) > 1e-6:
        raise PrefoptError(
            f"split fractions must be three numbers, none negative, whose sum is 1; got {list(fractions)}"
        )
    bounds = [round(bound, 9) for bound in accumulate(fractions)]
    parts = (array("Q"), array("Q"), array("Q"))
    for number, row in enumerate(rows):
        place = _uniform(seed, row.group)
        parts[next(i for i, bound in enumerate(bounds) if place < bound)].append(number)
    return parts


def _uniform(seed: int, group: str) -> float:
    """A pseudo-random number in [0, 1): 53 bits of a hash, the same on every machine."""
    digest = blake2b(f"{seed}\0{group}".encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return (int.from_bytes(digest, "big") >> 11) / 2**53
