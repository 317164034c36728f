"""What is remembered, for how long, and that nobody can spoil it for others."""

from copy import deepcopy
from pathlib import Path

from prefopt.support.sharing import LIMITS, shared, sharing, stamp


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
