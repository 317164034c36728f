"""Train, validation and test: a pure function of a row's group and the seed."""

from array import array
from collections.abc import Iterable
from hashlib import blake2b
from itertools import accumulate
from typing import Generic, NamedTuple, Protocol, TypeVar

from prefopt.data.disk_rows import Placed, Shelf
from prefopt.support.errors import PrefoptError


class Grouped(Placed, Protocol):
    """Anything with a group, such as an `Example`."""

    @property
    def group(self) -> str:
        """Rows of one group never straddle a split."""
        ...


Row = TypeVar("Row", bound=Grouped)


class Split(NamedTuple, Generic[Row]):
    """Three disjoint shelves; each keeps the order of the rows."""

    train: Shelf[Row]
    validation: Shelf[Row]
    test: Shelf[Row]


def split(rows: Iterable[Row], fractions: tuple[float, float, float] = (0.8, 0.1, 0.1), seed: int = 0) -> Split[Row]:
    """Rows into train, validation and test.

    A group's place depends on its name and the seed alone: adding, removing or reordering rows moves no other row. The
    fractions are therefore those of the groups, in expectation.

    Raises:
        PrefoptError: fractions that are negative or whose sum is not 1.
    """
    rows = Shelf.of(rows)
    train, validation, test = divided(rows, fractions, seed)
    return Split(rows.select(train), rows.select(validation), rows.select(test))


def divided(rows: Iterable[Row], fractions: tuple[float, float, float], seed: int) -> tuple[array, array, array]:
    """The numbers of the rows of each part of a `split`."""
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
    """A number in [0, 1) that looks random: 53 bits of a hash, so that it is the same on every machine."""
    digest = blake2b(f"{seed}\0{group}".encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return (int.from_bytes(digest, "big") >> 11) / 2**53
