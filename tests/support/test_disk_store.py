"""Numbers on disk: what is served is what was written, whoever writes, dies or damages in the meantime."""

import multiprocessing
import os
import signal
import time

import numpy as np
import pytest

from prefopt.support import disk_store as module
from prefopt.support.disk_store import KEY, PARTS, Store, blocks, packed, segments

ROOM = 10**9


def keys_of(numbers):
    """A key for each number, spread over all values."""
    halves = np.array([[n * 0x9E3779B97F4A7C15 % 2**64, n] for n in numbers], np.uint64)
    return halves.reshape(-1, 2).view(KEY)[:, 0]


def values_of(number):
    return np.float32(number) + np.arange(number % 7 + 1, dtype=np.float32) / 8


def put(store, numbers):
    store.put(keys_of(numbers), [values_of(n) for n in numbers])


def served(store, numbers):
    """The numbers whose values are there; they are checked to be right."""
    found, values = store.get(keys_of(numbers))
    there = [n for n, f in zip(numbers, found, strict=True) if f]
    assert np.array_equal(values, np.concatenate([values_of(n) for n in there] or [np.zeros(0)]))
    return there


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "cache" / "model", ROOM)


def again(store):
    return Store(store.folder, ROOM)


def test_what_was_put_is_there(store):
    assert served(store, [1, 2]) == []
    assert not store.folder.exists()  # nothing was written
    put(store, [3, 1, 4])
    put(store, [15, 9])
    for one in (store, again(store)):
        assert served(one, [9, 2, 3, 15, 1, 5, 4]) == [9, 3, 15, 1, 4]
        assert len(one) == 5
    assert len(segments(store.folder)) == 1


def test_an_empty_vector_is_no_missing_one(store):
    store.put(keys_of([1]), [np.zeros(0, np.float32)])
    found, values = again(store).get(keys_of([1, 2]))
    assert found.tolist() == [True, False] and not len(values)


def test_many_blocks(store):
    numbers = list(range(3 * PARTS + 5))
    for n in numbers:
        put(store, [n])
        assert served(store, numbers) == numbers[: n + 1]
    assert served(again(store), numbers) == numbers


def test_stores_see_each_other_when_they_look(store):
    other = again(store)
    put(store, [1])
    put(other, [2])
    assert served(other, [1, 2]) == [2]
    other.refresh()
    store.refresh()
    assert served(other, [1, 2]) == served(store, [1, 2]) == [1, 2]
    put(store, [3])
    other.refresh()
    assert served(other, [1, 2, 3]) == [1, 2, 3]
    assert len(segments(store.folder)) == 2  # each its own


def test_a_half_written_block_is_not_there(store):
    put(store, [1, 2])
    file = segments(store.folder)[0]
    whole = file.stat().st_size
    put(store, [3, 4])
    content = file.read_bytes()
    for end in range(whole, len(content)):
        file.write_bytes(content[:end])
        one = again(store)
        assert served(one, [1, 2, 3, 4]) == [1, 2]
    put(one, [3])  # not after what is torn
    assert served(again(store), [1, 2, 3, 4]) == [1, 2, 3]


def test_a_block_that_is_being_written_is_seen_when_it_is_whole(store):
    put(store, [1])
    file, other = segments(store.folder)[0], again(store)
    block = packed(keys_of([2]), [values_of(2)])
    with file.open("ab") as opened:
        for byte in block:
            other.refresh()
            assert served(other, [1, 2]) == [1]
            opened.write(bytes([byte]))
            opened.flush()
    other.refresh()
    assert served(other, [1, 2]) == [1, 2]


def test_no_damaged_byte_is_served(store, caplog):
    put(store, [1, 2])
    put(store, [3])
    file = segments(store.folder)[0]
    content = file.read_bytes()
    for place in range(len(content)):
        file.write_bytes(content[:place] + bytes([content[place] ^ 4]) + content[place + 1 :])
        assert len(served(again(store), [1, 2, 3])) < 3
    assert "is damaged" in caplog.text


def test_a_damaged_entry_that_was_written_again_is_served(store):
    put(store, [1, 2])
    (file,) = segments(store.folder)
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    repaired = again(store)
    assert served(repaired, [1, 2]) == [1]
    put(repaired, [2])
    assert served(repaired, [1, 2]) == [1, 2]
    for _ in range(5):  # which copy comes first depends on the random names of files
        put(again(store), [2])
        assert served(again(store), [1, 2]) == [1, 2]


def test_nothing_can_be_written(tmp_path, caplog):
    (tmp_path / "file").write_text("")
    store = Store(tmp_path / "file" / "model", ROOM)
    for _ in range(2):
        put(store, [1])
    assert served(store, [1]) == []
    assert caplog.text.count("nothing is written") == 1


def test_a_full_disk_ends_the_segment(store, monkeypatch, caplog):
    put(store, [1])
    whole, write = os.write, os.write
    monkeypatch.setattr(os, "write", lambda descriptor, data: write(descriptor, data[: len(data) // 2]))
    put(store, [2])
    monkeypatch.setattr(os, "write", whole)
    put(store, [3])
    assert "no space left" in caplog.text
    assert served(store, [1, 2, 3]) == served(again(store), [1, 2, 3]) == [1, 3]


def test_a_deleted_segment_is_forgotten(store):
    put(store, [1])
    reader = again(store)
    segments(store.folder)[0].unlink()
    assert served(reader, [1]) == []
    put(store, [2])
    assert served(again(store), [1, 2]) == [2]


def test_the_longest_unused_go_first(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "SEGMENT_BYTES", 100)
    stores = [Store(tmp_path / "cache" / name, ROOM) for name in "abc"]
    for age, store in enumerate(stores):
        put(store, [age])
        os.utime(segments(store.folder)[0], (1000 + age, 1000 + age))
    assert served(Store(stores[0].folder, ROOM), [0]) == [0]  # is used
    size = sum(f.stat().st_size for s in stores for f in segments(s.folder))
    new = Store(tmp_path / "cache" / "d", size)
    put(new, [3])
    left = {f.parent.name for f in (tmp_path / "cache").glob("*/*")}
    assert {"a", "d"} <= left and "b" not in left
    assert sum(f.stat().st_size for f in (tmp_path / "cache").glob("*/*")) <= size


def _write(folder, first):
    store = Store(folder, ROOM)
    for n in range(first, first + 10**6, 8):
        put(store, list(range(n, n + 8)))


def test_writers_that_are_killed(tmp_path):
    """Two at a time, and a third that reads; kill −9 in the middle."""
    folder = tmp_path / "cache" / "model"
    fork = multiprocessing.get_context("fork")
    writers = [fork.Process(target=_write, args=(folder, first)) for first in (0, 10**6)]
    for writer in writers:
        writer.start()
    reader, seen = Store(folder, ROOM), 0
    end = time.monotonic() + 20
    while seen < 400 and time.monotonic() < end:
        reader.refresh()
        seen = len(served(reader, [*range(400), *range(10**6, 10**6 + 400)]))
    for writer in writers:
        os.kill(writer.pid, signal.SIGKILL)
        writer.join()
    after = Store(folder, ROOM)
    assert len(after) >= seen >= 400
    assert sum(len(b.entries) for f in segments(folder) for b in blocks(f)) == len(after)
    numbers = [int(n) for f in segments(folder) for b in blocks(f) for n in b.entries["check"]]
    assert served(after, numbers) == numbers
    put(after, [5 * 10**6])
    assert served(Store(folder, ROOM), [5 * 10**6]) == [5 * 10**6]


def test_a_fork_writes_to_a_segment_of_its_own(store):
    put(store, [1])
    child = multiprocessing.get_context("fork").Process(target=put, args=(store, [2]))
    child.start()
    child.join()
    put(store, [3])
    assert len(segments(store.folder)) == 2
    assert served(again(store), [1, 2, 3]) == [1, 2, 3]
