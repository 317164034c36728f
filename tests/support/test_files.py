"""One process works in a folder at a time, on every file system; a lock goes with its process."""

import errno
import fcntl
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from prefopt.support.errors import PrefoptError
from prefopt.support.files import LOCK, SOFT_LOCK, is_empty, locked, replacing

HOLD = """
import errno, fcntl, sys
from pathlib import Path
from prefopt.support.files import locked
if sys.argv[2] != "0":
    def refuse(*_): raise OSError(int(sys.argv[2]), "not here")
    fcntl.flock = refuse
with locked(Path(sys.argv[1])):
    print("holding", flush=True)
    sys.stdin.readline()
"""

NONE = [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP]


@pytest.fixture
def without_locks(monkeypatch):
    """A file system that answers every lock with this error."""

    def choose(number: int) -> None:
        def refuse(*_):
            raise OSError(number, "not here")

        if number:
            monkeypatch.setattr(fcntl, "flock", refuse)

    return choose


def holding(folder: Path, number: int) -> subprocess.Popen:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder), str(number)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "holding\n"
    return process


@pytest.mark.parametrize("number", [0, *NONE])
def test_a_second_process_is_refused_and_a_killed_one_leaves_no_lock(tmp_path, without_locks, number):
    without_locks(number)
    folder = tmp_path / "run"
    with holding(folder, number) as process:
        with pytest.raises(PrefoptError, match="being worked on by another process"), locked(folder):
            pass
        process.kill()
    with locked(folder):
        (folder / "result").write_text("1")
    assert not (folder / SOFT_LOCK).exists()


def test_a_folder_that_was_locked_elsewhere_by_the_other_kind_is_free(tmp_path, without_locks):
    folder = tmp_path / "copied"
    folder.mkdir()
    (folder / LOCK).write_text("")  # what a run leaves on a file system that has locks
    without_locks(errno.ENOSYS)
    with locked(folder):
        pass


def test_the_lock_of_another_host_is_respected_and_the_message_names_the_file(tmp_path, without_locks):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / SOFT_LOCK).write_text(f"{os.getpid()}\n{socket.gethostname()}-other\n")
    without_locks(errno.ENOLCK)
    with pytest.raises(PrefoptError, match=rf"{os.getpid()} on .*-other.*remove .*{SOFT_LOCK}"), locked(folder):
        pass


@pytest.mark.parametrize("number", [0, errno.ENOSYS])
def test_a_folder_into_which_nothing_was_put_is_gone_again(tmp_path, without_locks, number):
    without_locks(number)
    with locked(tmp_path / "a" / "b"):
        assert is_empty(tmp_path / "a" / "b")
    assert not (tmp_path / "a").exists()


def test_what_a_kill_left_unfinished_is_nothing(tmp_path):
    """Killed while it wrote its first file, a run begins anew in the same folder."""
    with replacing(tmp_path / "recipe.yaml") as staging:
        left = staging
        assert not staging.exists() and is_empty(tmp_path)
        staging.write_text("policy:")
    (tmp_path / "recipe.yaml").rename(left)
    assert is_empty(tmp_path)
    left.rename(tmp_path / "recipe.yaml")
    assert not is_empty(tmp_path)
