"""Rows on disk: a sequence that takes a few bytes of memory for each row, however long its texts are."""

import io
import os
import pickle
import tempfile
import weakref
from array import array
from collections.abc import Hashable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from hashlib import blake2b
from itertools import count
from typing import Any, Generic, Protocol, Self, TypeVar, overload

from torch import Tensor

from prefopt.support.errors import PrefoptError


class Placed(Protocol):
    """Anything that messages can name, such as an `Example`."""

    @property
    def where(self) -> str:
        """File and line."""
        ...


T = TypeVar("T", bound=Placed)

PROTOCOL = pickle.HIGHEST_PROTOCOL

_COUNT = count()
"""Numbers of files; none is given twice."""


class Shelf(Sequence[T]):
    """Rows that were written once, in order, and are read when they are asked for; what is read is a new object, equal to the old.

    A slice or a selection is a shelf, too, which reads the same file. The file has no name: no other process can open it, and it
    goes with the last shelf that reads it.

    Rows are pickled one by one and read by position, rather than memory-mapped as Arrow: a column may hold anything, threads and
    forks read side by side, and what was read once does not count as memory of the process.
    """

    def __init__(self, file: "_File[T]", numbers: range | array) -> None:
        self._file = file
        self._numbers = numbers

    @classmethod
    def of(cls, rows: Iterable[T]) -> Self:
        """These rows, taken one by one; those that are on a shelf already stay where they are.

        Raises:
            PrefoptError: the disk is full, or a row cannot be pickled.
        """
        if isinstance(rows, cls):
            return rows
        file = _File(rows)
        return cls(file, range(len(file.ends) - 1))

    def __len__(self) -> int:
        return len(self._numbers)

    @overload
    def __getitem__(self, at: int) -> T: ...
    @overload
    def __getitem__(self, at: slice) -> Self: ...
    def __getitem__(self, at: int | slice) -> T | Self:
        if isinstance(at, slice):
            return type(self)(self._file, self._numbers[at])
        return self._file.read(self._numbers[at])

    def __iter__(self) -> Iterator[T]:
        return map(self._file.read, self._numbers)

    def select(self, numbers: Iterable[int]) -> Self:
        """The rows with these numbers, in this order."""
        return type(self)(self._file, array("Q", (self._numbers[number] for number in numbers)))

    @property
    def identity(self) -> Hashable:
        """The same for shelves of the same rows of one file, and for no others in this process."""
        return self._file.number, blake2b(array("Q", self._numbers), digest_size=16).digest()


class _File(Generic[T]):
    """Pickled rows, one after another.

    Attributes:
        number: no other file has it.
        ends: where each row ends, after a 0.
    """

    def __init__(self, rows: Iterable[T]) -> None:
        self.number = next(_COUNT)
        self.ends = array("Q", [0])
        with self._room_needed():
            self._opened = tempfile.TemporaryFile(prefix="prefopt-rows-")  # noqa: SIM115
        weakref.finalize(self, self._opened.raw.close)  # the raw file: by then there is nothing left to be written
        for row in rows:
            record = _pickled(row)
            with self._room_needed():
                self._opened.write(record)
            self.ends.append(self.ends[-1] + len(record))
        with self._room_needed():
            self._opened.flush()

    def read(self, number: int) -> T:
        """A row."""
        start, end = self.ends[number], self.ends[number + 1]
        row: T = pickle.loads(os.pread(self._opened.fileno(), end - start, start))
        return row

    @contextmanager
    def _room_needed(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise PrefoptError(
                f"rows are kept in a file in {tempfile.tempdir or 'a temporary folder'}, which failed after "
                f"{self.ends[-1] / 1e6:,.1f} MB ({error.strerror or error}). If the disk is full, make room there, or let TMPDIR "
                "name another folder"
            ) from error


class _Pickler(pickle.Pickler):
    def reducer_override(self, value: Any) -> Any:
        """A tensor alone: one that is a part of a larger one would be written with all of it."""
        return value.detach().clone().__reduce_ex__(PROTOCOL) if isinstance(value, Tensor) else NotImplemented


def _pickled(row: Placed) -> bytes:
    written = io.BytesIO()
    try:
        _Pickler(written, PROTOCOL).dump(row)
    except Exception as error:  # what cannot be pickled raises whatever it likes
        raise PrefoptError(
            f"{row.where}: rows are kept on disk, and this one cannot be ({error}): give text, numbers, lists, dicts or arrays"
        ) from error
    return written.getvalue()
