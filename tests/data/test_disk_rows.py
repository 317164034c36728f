"""Rows on disk are to whoever reads them what a list of them is, and take next to no memory."""

import copy
import errno
import os
import pickle
import resource
import tempfile
import threading
import tracemalloc

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from prefopt.data import DiskRows, Example, load_examples, split, tokenise_to_disk
from prefopt.support.errors import PrefoptError


def examples(count, **columns):
    return [
        Example(f"p{i}", (" a", " b"), (0.5, -0.5), where=f"x.jsonl:{i + 1}", columns=columns) for i in range(count)
    ]


numbers = st.integers(-12, 11)
ends = st.none() | st.integers(-14, 14)
steps = st.sampled_from([None, 1, 2, 3, -1, -2])
chosen = st.lists(
    st.tuples(st.just("slice"), st.builds(slice, ends, ends, steps))
    | st.tuples(st.just("select"), st.lists(st.integers(0, 99), max_size=12)),
    max_size=4,
)


@given(chosen, st.lists(numbers, max_size=5))
@settings(deadline=None)
def test_parts_of_parts_are_those_of_a_list(parts, at):
    rows = examples(12)
    stored = DiskRows.of(rows)
    for how, which in parts:
        if how == "slice":
            rows, stored = rows[which], stored[which]
        else:
            which = [number % len(rows) for number in which] if rows else []
            rows, stored = [rows[number] for number in which], stored.select(which)
    assert len(stored) == len(rows) and bool(stored) == bool(rows)
    assert list(stored) == rows and list(reversed(stored)) == rows[::-1]
    for number in at:
        if -len(rows) <= number < len(rows):
            assert stored[number] == stored[np.int64(number)] == rows[number]
        else:
            with pytest.raises(IndexError):
                stored[number]


def test_rows_on_disk_are_not_written_again():
    stored = DiskRows.of(examples(3))
    assert DiskRows.of(stored) is stored
    assert len(DiskRows.of(())) == 0


def test_what_a_reader_does_to_a_row_is_its_own_affair():
    stored = DiskRows.of(examples(1, cost=[1, 2]))
    stored[0].columns["cost"].append(3)
    assert stored[0].columns["cost"] == [1, 2]


def test_columns_of_all_kinds_come_back():
    large = torch.arange(1e6)
    columns = {
        "array": np.arange(6, dtype=np.int16).reshape(2, 3),
        "number": np.float64(0.5),
        "tensor": large[3:6],
        "half": torch.ones(2, dtype=torch.bfloat16),
        "weight": torch.nn.Parameter(torch.ones(1)),
        "nested": [{"a": (1, None), "b": {"ö\ud800": [True, 2.5]}}],
    }
    (row,) = DiskRows.of(examples(1, **columns))
    assert row.columns.keys() == columns.keys()
    for name in ("array", "number"):
        assert row.columns[name].dtype == columns[name].dtype
        np.testing.assert_array_equal(row.columns[name], columns[name])
    for name in ("tensor", "half", "weight"):
        torch.testing.assert_close(row.columns[name], columns[name].data, rtol=0, atol=0)
    assert row.columns["nested"] == columns["nested"]


def test_a_part_of_a_tensor_is_written_alone():
    whole = torch.arange(100_000)
    rows = (Example("p", where="x", columns={"part": part}) for part in whole.split(1000))
    assert written(DiskRows.of(rows)) < 2 * whole.nbytes


def written(stored):
    """Bytes in the file."""
    return os.fstat(stored._file._opened.fileno()).st_size


def test_the_memory_of_a_row_is_a_number():
    """8 bytes each; a list of the same rows, which this sees, takes 750 and more."""

    def rows():
        return (Example(f"p{i}" * 100, (f" a{i}",), where=f"x:{i}", columns={"id": [i]}) for i in range(20_000))

    DiskRows.of(rows())
    held = {}
    for make in (DiskRows.of, list):
        tracemalloc.start()
        made = make(rows())
        sum(len(row.prompt) for row in made)
        held[make], most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        if make is not list:
            assert most < 20_000 * 10 + 100_000
    assert held[DiskRows.of] < 20_000 * 10 < 20_000 * 750 < held[list]


def test_splitting_and_tokenising_hold_nothing_either(plain):
    rows = DiskRows.of(
        Example(f"question {i} " * 20, (" yes", " no"), where=f"x:{i}", group=str(i)) for i in range(3000)
    )
    tracemalloc.start()
    parts = split(rows, (0.5, 0.25, 0.25))
    tokenised, report = tokenise_to_disk(parts.train, plain)
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert report.kept == len(tokenised) == len(parts.train)
    assert held < 300_000  # most of it freed memory that Python keeps; the tokens alone would be 3 MB


def test_the_same_rows_have_the_same_identity_and_no_others():
    stored = DiskRows.of(examples(9))
    same = [stored, stored[:], stored[:20], stored.select(range(9)), stored[::-1][::-1]]
    assert len({rows.identity for rows in same}) == 1
    others = [stored, stored[1:], stored[:-1], stored[::-1], stored[:0], stored.select([3]), DiskRows.of(examples(9))]
    assert len({rows.identity for rows in others}) == len(others)
    assert len({DiskRows.of(examples(1)).identity for _ in range(5)}) == 5  # also when the one before is gone


def test_a_row_that_cannot_be_kept_is_named():
    rows = [*examples(2), Example("p", where="mine.py:rows:row 3", columns={"lock": threading.Lock()})]
    with pytest.raises(PrefoptError, match=r"mine\.py:rows:row 3: .*cannot pickle '_thread\.lock' object.*give text"):
        DiskRows.of(rows)


def test_a_users_own_class_comes_back(tmp_path):
    (tmp_path / "mine.py").write_text(
        "from dataclasses import dataclass\n@dataclass\nclass Note:\n    text: str\n"
        "def rows():\n    yield {'prompt': 'p', 'note': Note('n')}\n"
    )
    (row,) = load_examples(f"{tmp_path}/mine.py:rows")
    assert row.columns["note"].text == "n"


def test_a_full_disk_is_said():
    """A limit on the size of files is as real as one of the disk, and can be lifted again."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        for count in (300, 10):  # while it writes, and at the end
            with pytest.raises(
                PrefoptError, match=rf"{tempfile.gettempdir()}, which failed after [\d.]+ MB \(File too large"
            ):
                DiskRows.of(Example("p" * (120_000 // count), where="x") for _ in range(count))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_folder_for_temporary_files_that_is_not_there_is_said(monkeypatch, tmp_path):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "gone"))
    with pytest.raises(PrefoptError, match=r"a file in .*/gone.*TMPDIR"):
        DiskRows.of(())


def test_what_goes_wrong_in_making_rows_is_not_the_disks_fault():
    def rows():
        yield from examples(1)
        raise OSError(errno.EIO, "their own")

    with pytest.raises(OSError, match="their own"):
        DiskRows.of(rows())


def test_the_file_has_no_name_and_goes_with_the_last_part(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    stored = DiskRows.of(examples(9))
    assert list(tmp_path.iterdir()) == []
    part, descriptor = stored[3:], stored._file._opened.fileno()
    del stored
    assert part[0].prompt == "p3"
    os.fstat(descriptor)
    del part
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(descriptor)


@pytest.mark.parametrize("duplicate", [pickle.dumps, copy.deepcopy])
def test_rows_on_disk_are_not_copied_by_mistake(duplicate):
    """A descriptor means nothing in another process."""
    with pytest.raises(TypeError, match="cannot pickle"):
        duplicate(DiskRows.of(examples(1)))


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_threads_and_forks_read_side_by_side():
    stored = DiskRows.of(examples(300))
    found = {}
    threads = [threading.Thread(target=lambda n=n: found.update({n: list(stored)})) for n in range(4)]
    for thread in threads:
        thread.start()
    child = os.fork()
    if child == 0:
        os._exit(list(stored) != examples(300))
    for thread in threads:
        thread.join()
    assert os.waitpid(child, 0)[1] == 0
    assert all(rows == examples(300) for rows in found.values())
