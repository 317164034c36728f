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


class Located(Protocol):
    """Anything whose origin error messages can name, such as an `Example`."""

    @property
    def where(self) -> str:
        """File and line."""
        ...


RowT = TypeVar("RowT", bound=Located)

PROTOCOL = pickle.HIGHEST_PROTOCOL

_FILE_NUMBERS = count()
"""Numbers of files; each is used once in a process."""


class DiskRows(Sequence[RowT]):
    """A sequence of rows in a temporary file. Each row is written once; indexing reads it and returns a new, equal object.

    A slice or a selection is again a `DiskRows`, which reads the same file. The file has no name, so no other process can open it;
    it is deleted when the last `DiskRows` that reads it is.

    Rows are pickled one by one and read by position, rather than memory-mapped as Arrow: a column may hold anything that can be
    pickled, threads and forks can read at the same time, and pages that were read do not count as memory of the process.
    """

    def __init__(self, file: "_File[RowT]", numbers: range | array) -> None:
        self._file = file
        self._numbers = numbers

    @classmethod
    def of(cls, rows: Iterable[RowT]) -> Self:
        """Write rows one by one; a `DiskRows` is returned as it is.

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
    def __getitem__(self, at: int) -> RowT: ...
    @overload
    def __getitem__(self, at: slice) -> Self: ...
    def __getitem__(self, at: int | slice) -> RowT | Self:
        if isinstance(at, slice):
            return type(self)(self._file, self._numbers[at])
        return self._file.read(self._numbers[at])

    def __iter__(self) -> Iterator[RowT]:
        return map(self._file.read, self._numbers)

    def select(self, numbers: Iterable[int]) -> Self:
        """The rows with these numbers, in this order."""
        return type(self)(self._file, array("Q", (self._numbers[number] for number in numbers)))

    @property
    def identity(self) -> Hashable:
        """A key that is equal for the same rows of one file in the same order, and for nothing else in this process."""
        return self._file.number, blake2b(array("Q", self._numbers), digest_size=16).digest()


class _File(Generic[RowT]):
    """Pickled rows, one after another.

    Attributes:
        number: unique to this file within the process.
        ends: byte offsets: 0, then the end of each row.
    """

    def __init__(self, rows: Iterable[RowT]) -> None:
        self.number = next(_FILE_NUMBERS)
        self.ends = array("Q", [0])
        with self._disk_errors():
            self._opened = tempfile.TemporaryFile(prefix="prefopt-rows-")  # noqa: SIM115
        weakref.finalize(self, self._opened.raw.close)  # the raw file: by then there is nothing left to be written
        for row in rows:
            record = _pickled(row)
            with self._disk_errors():
                self._opened.write(record)
            self.ends.append(self.ends[-1] + len(record))
        with self._disk_errors():
            self._opened.flush()

    def read(self, number: int) -> RowT:
        """The row with this number, unpickled."""
        start, end = self.ends[number], self.ends[number + 1]
        row: RowT = pickle.loads(os.pread(self._opened.fileno(), end - start, start))
        return row

    @contextmanager
    def _disk_errors(self) -> Iterator[None]:
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
        """Copy a tensor first: a view would otherwise be pickled with its whole storage."""
        return value.detach().clone().__reduce_ex__(PROTOCOL) if isinstance(value, Tensor) else NotImplemented


def _pickled(row: Located) -> bytes:
    buffer = io.BytesIO()
    try:
        _Pickler(buffer, PROTOCOL).dump(row)
    except Exception as error:  # pickling raises exceptions of many kinds
        raise PrefoptError(
            f"{row.where}: rows are kept on disk, and this one cannot be pickled ({error}); give text, numbers, lists or arrays"
        ) from error
    return buffer.getvalue()
