"""A key-value store on disk for vectors of float32: append-only files that several processes can write and read at once.

A process appends only to a file of its own (a segment), so writers need no lock, also on a network file system. A segment is a
sequence of blocks, each appended by one call: header, index of entries, values (float32, little endian). The index has a digest,
which is checked when it is read; every entry has a checksum of its key and values, which is checked whenever it is read. A block
that a killed writer left incomplete is ignored, together with everything after it in its segment.
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
"""An entry and where its values are: offset of the first one in the file, in values, and the file's number."""

SUFFIX = ".segment"
SEGMENT_BYTES = 2**26
"""A segment that has reached this size is closed. Eviction deletes whole segments."""

PARTS = 32
"""Number of sorted parts of the index at which they are merged into one."""


class Block(NamedTuple):
    """What one call appended: its entries, the offset of its first value (in values), and its end (in bytes)."""

    entries: NDArray
    start: int
    end: int


class Part(NamedTuple):
    """A sorted part of the index: the first halves of keys, contiguous for searching, and the places in the same order."""

    keys: NDArray
    places: NDArray


class Store:
    """Vectors of float32 by 16-byte keys, in the segments of a folder.

    Entries are never changed; two processes that put the same key leave two copies. Failures never stop a run: entries that cannot
    be written are skipped with a warning, damaged ones count as missing.

    Args:
        folder: of the segments; created by the first write.
        limit: most bytes of all segments in this folder and its siblings; a new segment evicts the least recently used ones.
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
        """Read the index of what this and other processes have written since."""
        places: list[NDArray] = []
        for file in segments(self.folder):
            with contextlib.suppress(OSError):  # evicted in this moment
                if file.stat().st_size > self._ends.get(file, 0):
                    places += [self._noted(file, block) for block in blocks(file, self._ends.get(file, 0))]
        if places:
            self._add(np.concatenate(places))

    def get(self, keys: NDArray) -> tuple[NDArray, NDArray]:
        """Look up keys, [N] `KEY`: which are there, [N] bool, and their vectors, concatenated in the order of the keys."""
        places = np.zeros(len(keys), PLACE)
        found = np.zeros(len(keys), bool)
        for part in self._parts:
            at = np.searchsorted(part.keys, keys["key"]).clip(max=len(part.keys) - 1)
            hit = (part.keys[at] == keys["key"]) & (part.places["check"][at] == keys["check"])
            places[hit], found = part.places[at[hit]], found | hit
        values: list[NDArray] = []
        columns = (places[name].tolist() for name in ("file", "start", "length", "crc"))
        for number, (there, *place) in enumerate(zip(found.tolist(), *columns, strict=True)):
            key = keys[number : number + 1]
            served = self._values(key, *place) if there else None
            if there and served is None:
                served = self._other_copy(key)
            found[number] = served is not None
            values += [] if served is None else [served]
        return found, np.concatenate(values) if values else np.zeros(0, np.float32)

    def put(self, keys: NDArray, values: Sequence[NDArray]) -> None:
        """Write N vectors, float32, under these keys, [N] `KEY`."""
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
            self._warn("%s: nothing is written to the cache: %s", self.folder, error)
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
        """Add a part to the index; merge the parts when there are many."""
        if len(self._parts) >= PARTS:
            places = np.concatenate([places, *(part.places for part in self._parts)])
            self._parts.clear()
        places = places[places["key"].argsort(kind="stable")]
        self._parts.append(Part(np.ascontiguousarray(places["key"]), places))

    def _other_copy(self, key: NDArray) -> NDArray | None:
        """The first whole entry of a key of which there are several, because one was damaged or two processes put it."""
        for part in self._parts:
            first, last = (np.searchsorted(part.keys, key["key"][0], side) for side in ("left", "right"))
            for place in part.places[first:last]:
                if place["check"] == key["check"][0]:
                    values = self._values(key, *(int(place[name]) for name in ("file", "start", "length", "crc")))
                    if values is not None:
                        return values
        return None

    def _values(self, key: NDArray, file: int, start: int, length: int, crc: int) -> NDArray | None:
        """The values of an entry; None if its file is gone or they are damaged."""
        memory = self._memory.get(file)
        if memory is None or len(memory) < start + length:
            with contextlib.suppress(OSError):  # evicted, or not readable
                memory = self._memory[file] = mapped(self._files[file])
                os.utime(self._files[file])  # for eviction: used now
        if memory is None or len(memory) < start + length:
            return None
        values = memory[start : start + length]
        if checksum(key, values) == crc:
            return values
        self._warn("%s is damaged: some of it is computed again (prefopt cache verify)", self._files[file])
        return None

    def _segment(self) -> tuple[Path, int]:
        """The segment of this process and its descriptor; a new one after a fork, when the old one is full, or was deleted."""
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
    """The bytes of a block with these entries."""
    entries = np.zeros(len(keys), ENTRY)
    entries["key"], entries["check"] = keys["key"], keys["check"]
    entries["length"] = [len(vector) for vector in values]
    vectors = [np.ascontiguousarray(vector, "<f4") for vector in values]
    entries["crc"] = [checksum(keys[i : i + 1], vector) for i, vector in enumerate(vectors)]
    index, numbers = entries.tobytes(), b"".join(vector.tobytes() for vector in vectors)
    count, floats = len(entries), len(numbers) // 4
    return HEADER.pack(MAGIC, count, floats, _digest(count, floats, index)) + index + numbers


def blocks(file: Path, offset: int = 0) -> Iterator[Block]:
    """The complete blocks of a segment from a byte offset on; values are not read."""
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
    """The keys of entries, [N, 1] `KEY`."""
    keys = np.zeros((len(entries), 1), KEY)
    keys["key"][:, 0], keys["check"][:, 0] = entries["key"], entries["check"]
    return keys


def mapped(file: Path) -> NDArray:
    """A segment as a memory-mapped array of float32."""
    return np.memmap(file, "<f4", "r", shape=(file.stat().st_size // 4,)).view(np.ndarray)


def checksum(key: NDArray, values: NDArray) -> int:
    """CRC-32 of an entry's key, [1] `KEY`, and values."""
    return zlib.crc32(values.tobytes(), zlib.crc32(key.tobytes()))


def _digest(count: int, floats: int, index: bytes) -> bytes:
    return hashlib.blake2b(struct.pack("<II", count, floats) + index, digest_size=16).digest()


def evict(folder: Path, limit: int) -> None:
    """Delete the least recently used segments below a folder until one more fits within the limit."""
    files = []
    for file in folder.glob(f"*/*{SUFFIX}"):
        with contextlib.suppress(OSError):
            state = file.stat()
            files.append((state.st_mtime, state.st_size, file))
    total = sum(size for _, size, _ in files) + SEGMENT_BYTES
    for _, size, file in sorted(files):
        if total <= limit:
            return
        with contextlib.suppress(OSError):  # another process was quicker
            file.unlink()
        total -= size
