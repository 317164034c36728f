"""A sharded run of which a process is killed goes on with two processes and with one, to the numbers of one undisturbed."""

import shutil
from pathlib import Path

import pytest
from _sharded_kills import STEPS, VICTIMS, distance, finish, kill, prepare


@pytest.mark.slow
def test_killed_midway_a_run_ends_as_if_nothing_had_been_with_two_processes_and_with_one(tmp_path: Path) -> None:
    home, killed = prepare(tmp_path), tmp_path / "killed"
    one = finish(home, home / "one", 1)
    kill(home, killed, VICTIMS["the other"], STEPS // 2)
    shutil.copytree(killed, home / "by one")
    assert distance(one, finish(home, killed, 2, resume=True)) <= 1e-9
    assert distance(one, finish(home, home / "by one", 1, resume=True)) <= 1e-9
