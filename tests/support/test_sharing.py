"""What is remembered, for how long, and that nobody can spoil it for others."""

import multiprocessing
import os
import threading
import time
from copy import deepcopy
from pathlib import Path
from typing import Any

from prefopt.support.sharing import LIMITS, shared, shared_text, sharing, sharing_files, stamp


def test_nothing_is_remembered_outside() -> None:
    made: list[int] = []
    for _ in range(2):
        shared("models", "key", lambda: made.append(1))
    assert len(made) == 2
    with sharing():
        for _ in range(2):
            shared("models", "key", lambda: made.append(1))
        assert len(made) == 3
    with sharing():
        shared("models", "key", lambda: made.append(1))
    assert len(made) == 4


def test_copies_are_fresh_and_inner_sharing_keeps_what_the_outer_knows() -> None:
    with sharing():
        one = shared("models", "key", lambda: [1], copy=deepcopy)
        one.append(2)
        with sharing():
            assert shared("models", "key", lambda: [3], copy=deepcopy) == [1]
        assert shared("models", "key", lambda: [4], copy=deepcopy) == [1]


def test_the_one_longest_of_no_use_goes_first() -> None:
    with sharing():
        for key in range(LIMITS["models"]):
            shared("models", key, lambda key=key: key)
        shared("models", 0, lambda: "again")
        shared("models", "new", lambda: "new")
        assert shared("models", 0, lambda: "again") == 0
        assert shared("models", 1, lambda: "again") == "again"


def test_a_file_or_folder_that_changes_is_another_one(tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    file.write_text("a")
    before = stamp(str(file)), stamp(str(tmp_path))
    file.write_text("ab")
    after = stamp(str(file)), stamp(str(tmp_path))
    assert before[0] != after[0] and before[1] != after[1]
    assert after == (stamp(str(file)), stamp(str(tmp_path)))


def _slowly(folder: Path, mark: Path, seconds: float) -> None:
    """In a process of its own: a text that takes a while to make."""

    def make() -> str:
        mark.write_text("making")
        time.sleep(seconds)
        return f"made by {os.getpid()}"

    with sharing_files(folder):
        shared_text("texts", "key", make, lambda text: text.startswith("made by"))


def _started(folder: Path, mark: Path, seconds: float) -> Any:
    process = multiprocessing.get_context("spawn").Process(target=_slowly, args=(folder, mark, seconds))
    process.start()
    while not mark.exists():
        time.sleep(0.01)
    return process


def test_one_process_makes_a_text_and_another_waits_for_it(tmp_path: Path) -> None:
    other = _started(tmp_path, tmp_path / "mark", 0.3)
    with sharing_files(tmp_path):
        text = shared_text("texts", "key", lambda: "made here", lambda _: True)
    assert text == f"made by {other.pid}"
    other.join()


def test_where_the_process_that_makes_a_text_is_killed_the_one_that_waits_makes_it(tmp_path: Path) -> None:
    other = _started(tmp_path, tmp_path / "mark", 600)
    threading.Timer(0.2, other.kill).start()
    with sharing_files(tmp_path):
        assert shared_text("texts", "key", lambda: "made here", lambda _: True) == "made here"
        assert shared_text("texts", "key", lambda: "again", lambda _: True) == "made here"
        assert shared_text("texts", "key", lambda: "anew", lambda text: "anew" in text) == "anew"
    assert shared_text("texts", "key", lambda: "alone", lambda _: True) == "alone"
    other.join()


def test_a_folder_that_cannot_be_written_to_costs_only_the_sharing(tmp_path: Path) -> None:
    (tmp_path / "texts").write_text("a file where the folder would be")
    with sharing_files(tmp_path):
        assert shared_text("texts", "key", lambda: "made", lambda _: True) == "made"
        assert shared_text("texts", "key", lambda: "again", lambda _: True) == "again"
