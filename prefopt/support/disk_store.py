"""Numbers on disk by key: append-only files that any number of processes may write and read at once.

A process appends only to a file of its own (a segment), so writers need no lock, on a network's file system neither. A segment
is a row of blocks, each appended by one call: header, index of entries, values (float32, little endian). The index has a digest,
which is checked when it is read; every entry has a checksum of its key and values, which is checked whenever it is served. What
a killed writer left half-written ends its segment: it is as good as not there.
"""

import contextlib
import hashlib
import logging
import os
import struct
import uuid
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

log = logging.getLogger(__name__)

MAGIC = b"prefopt1"
HEADER = struct.Struct("<8sII16s")
"""Magic, number of entries, number of values, digest of the two numbers and the index."""

KEY = np.dtype([("key", "<u8"), ("check", "<u8")])
ENTRY = np.dtype([*KEY.descr, ("length", "<u4"), ("crc", "<u4")])
PLACE = np.dtype([*ENTRY.descr, ("start", "<u8"), ("file", "<u4")])
"""An entry and where its values are: the place of the first in the file, in values, and the file's number."""

SUFFIX = ".segment"
SEGMENT_BYTES = 2**26
"""A segment of this size is closed; whole segments are what is evicted."""

PARTS = 32
"""Sorted parts of an index that are looked through before they are merged to one."""


class Block(NamedTuple):
    """What one call appended: its entries, the place of its first value (in values), and where it ends (in bytes)."""

    entries: NDArray
    start: int
    end: int


class Part(NamedTuple):
    """Places sorted by the first half of their key, which is there once more by itself, to be searched."""

    keys: NDArray
    places: NDArray


class Store:
    """Vectors of float32 by 16-byte keys, in the segments of a folder.

    Nothing is ever changed; two processes that put the same key leave it there twice. A run does not fail for want of a cache: what
    cannot be written is not kept, what is damaged is not found.

    Args:
        folder: of the segments; made when there is something to write.
        limit: bytes of all segments in this folder and those beside it; the longest unused are deleted for new ones.
    """

    def __init__(self, folder: Path, limit: int):
        self.folder, self.limit = folder, limit
        self._parts: list[Part] = []
        self._files: list[Path] = []
        self._ends: dict[Path, int] = {}  # how far each has been read
        self._memory: dict[int, NDArray] = {}
        self._own: tuple[int, Path, int] | None = None  # process, segment, descriptor
        self._warned = False
        self.refresh()

    def __len__(self) -> int:
        return sum(len(part.keys) for part in self._parts)

    def refresh(self) -> None:
        """Take note of what was written since, by whomever."""
        found: list[NDArray] = []
        for file in segments(self.folder):
            with contextlib.suppress(OSError):  # evicted in this moment
                if file.stat().st_size > self._ends.get(file, 0):
                    found += [self._noted(file, block) for block in blocks(file, self._ends.get(file, 0))]
        if found:
            self._add(np.concatenate(found))

    def get(self, keys: NDArray) -> tuple[NDArray, NDArray]:
        """Which of the keys, [N] `KEY`, are there, [N] bool, and the values of these one after another."""
        places = np.zeros(len(keys), PLACE)
        found = np.zeros(len(keys), bool)
        for part in self._parts:
            at = np.searchsorted(part.keys, keys["key"]).clip(max=len(part.keys) - 1)
            hit = (part.keys[at] == keys["key"]) & (part.places["check"][at] == keys["check"])
            places[hit], found = part.places[at[hit]], found | hit
        values: list[NDArray] = []
        columns = (places[name].tolist() for name in ("file", "start", "length", "crc"))
        for number, (there, *place) in enumerate(zip(found.tolist(), *columns, strict=True)):
            served = self._values(keys[number : number + 1], *place) if there else None
            found[number] = served is not None
            values += [] if served is None else [served]
        return found, np.concatenate(values) if values else np.zeros(0, np.float32)

    def put(self, keys: NDArray, values: Sequence[NDArray]) -> None:
        """Keep these vectors, float32, by these keys, [N] `KEY`."""
        if not len(keys):
            return
        block = packed(keys, values)
        try:
            file, descriptor = self._segment()
            start = os.fstat(descriptor).st_size
            if os.write(descriptor, block) < len(block):  # half-written: nothing can follow it
                self._close()
                raise OSError("no space left")
        except OSError as error:
            self._warn("%s: nothing is kept: %s", self.folder, error)
            return
        self._add(np.concatenate([self._noted(file, block) for block in blocks(file, start)]))

    def _noted(self, file: Path, block: Block) -> NDArray:
        """Places of a block's entries."""
        if file not in self._ends:
            self._files.append(file)
        self._ends[file] = block.end
        places = np.zeros(len(block.entries), PLACE)
        for name in ENTRY.names or ():
            places[name] = block.entries[name]
        lengths = block.entries["length"].astype("<u8")
        places["start"] = block.start + lengths.cumsum() - lengths
        places["file"] = self._files.index(file)
        return places

    def _add(self, places: NDArray) -> None:
        """A further part; when there are many, one of all of them."""
        if len(self._parts) >= PARTS:
            places = np.concatenate([places, *(part.places for part in self._parts)])
            self._parts.clear()
        places = places[places["key"].argsort(kind="stable")]
        self._parts.append(Part(np.ascontiguousarray(places["key"]), places))

    def _values(self, key: NDArray, file: int, start: int, length: int, crc: int) -> NDArray | None:
        """The values of an entry, unless they are gone or damaged."""
        memory = self._memory.get(file)
        if memory is None or len(memory) < start + length:
            with contextlib.suppress(OSError):  # evicted, or somebody else's
                memory = self._memory[file] = mapped(self._files[file])
                os.utime(self._files[file])  # it is in use
        if memory is None or len(memory) < start + length:
            return None
        values = memory[start : start + length]
        if checksum(key, values) == crc:
            return values
        self._warn("%s is damaged: some of it is computed again (prefopt cache verify)", self._files[file])
        return None

    def _segment(self) -> tuple[Path, int]:
        """The segment of this process, and its descriptor; a new one after a fork, when it is full, or has been deleted."""
        if self._own is not None:
            process, file, descriptor = self._own
            state = os.fstat(descriptor)
            if process == os.getpid() and state.st_nlink and state.st_size < SEGMENT_BYTES:
                return file, descriptor
            self._close()
        self.folder.mkdir(parents=True, exist_ok=True)
        evict(self.folder.parent, self.limit)
        file = self.folder / f"{uuid.uuid4().hex}{SUFFIX}"
        descriptor = os.open(file, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_APPEND, 0o644)
        self._own = (os.getpid(), file, descriptor)
        return file, descriptor

    def _close(self) -> None:
        if self._own is not None:
            os.close(self._own[2])
            self._own = None

    def __del__(self) -> None:
        with contextlib.suppress(OSError):
            self._close()

    def _warn(self, text: str, *arguments: object) -> None:
        if not self._warned:
            log.warning(text, *arguments)
            self._warned = True


def segments(folder: Path) -> list[Path]:
    """The segments of a folder."""
    return sorted(folder.glob(f"*{SUFFIX}"))


def packed(keys: NDArray, values: Sequence[NDArray]) -> bytes:
    """A block of these entries, as it stands in a segment."""
    entries = np.zeros(len(keys), ENTRY)
    entries["key"], entries["check"] = keys["key"], keys["check"]
    entries["length"] = [len(vector) for vector in values]
    vectors = [np.ascontiguousarray(vector, "<f4") for vector in values]
    entries["crc"] = [checksum(keys[i : i + 1], vector) for i, vector in enumerate(vectors)]
    index, numbers = entries.tobytes(), b"".join(vector.tobytes() for vector in vectors)
    count, floats = len(entries), len(numbers) // 4
    return HEADER.pack(MAGIC, count, floats, _digest(count, floats, index)) + index + numbers


def blocks(file: Path, offset: int = 0) -> Iterator[Block]:
    """The blocks of a segment from a place on, as far as they are whole; values are not read."""
    size = file.stat().st_size
    with file.open("rb") as opened:
        while offset + HEADER.size <= size:
            opened.seek(offset)
            magic, count, floats, digest = HEADER.unpack(opened.read(HEADER.size))
            start = offset + HEADER.size + count * ENTRY.itemsize
            offset = start + 4 * floats
            if magic != MAGIC or offset > size:
                return
            index = opened.read(count * ENTRY.itemsize)
            if _digest(count, floats, index) != digest:
                return
            yield Block(np.frombuffer(index, ENTRY), start // 4, offset)


def keys_of(entries: NDArray) -> NDArray:
    """The keys of entries, each by itself: [N, 1] `KEY`."""
    keys = np.zeros((len(entries), 1), KEY)
    keys["key"][:, 0], keys["check"][:, 0] = entries["key"], entries["check"]
    return keys


def mapped(file: Path) -> NDArray:
    """A segment as float32 in memory, read when it is looked at."""
    return np.memmap(file, "<f4", "r", shape=(file.stat().st_size // 4,)).view(np.ndarray)


def checksum(key: NDArray, values: NDArray) -> int:
    """Of an entry's key, [1] `KEY`, and its values."""
    return zlib.crc32(values.tobytes(), zlib.crc32(key.tobytes()))


def _digest(count: int, floats: int, index: bytes) -> bytes:
    return hashlib.blake2b(struct.pack("<II", count, floats) + index, digest_size=16).digest()


def evict(folder: Path, limit: int) -> None:
    """Delete the longest unused segments below a folder, until the others have room for one more within the limit."""
    found = []
    for file in folder.glob(f"*/*{SUFFIX}"):
        with contextlib.suppress(OSError):
            state = file.stat()
            found.append((state.st_mtime, state.st_size, file))
    total = sum(size for _, size, _ in found) + SEGMENT_BYTES
    for _, size, file in sorted(found):
        if total <= limit:
            return
        with contextlib.suppress(OSError):  # another process was quicker
            file.unlink()
        total -= size
