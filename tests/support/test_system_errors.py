"""What the operating system refuses becomes a sentence with the place, the reason and a remedy. The errors are real ones."""

import errno
import multiprocessing
import os
import resource
import signal
import sqlite3
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from prefopt.support.errors import PrefoptError
from prefopt.support.files import append_whole, replacing, replacing_folder, write_whole
from prefopt.support.system_errors import REMEDIES, naming, noting, system_sentence


def raised(work) -> BaseException:
    try:
        work()
    except Exception as error:
        return error
    pytest.fail("nothing was raised")


def full(place: Path) -> None:
    with naming(place), open("/dev/full", "wb", buffering=0) as file:
        file.write(b"x")


def loop(folder: Path) -> None:
    (folder / "a").symlink_to(folder / "b")
    (folder / "b").symlink_to(folder / "a")
    (folder / "a").read_bytes()


def link_to_nothing(folder: Path) -> None:
    (folder / "link").symlink_to("/nowhere/at/all")
    (folder / "link").mkdir(exist_ok=True)


def below_a_file(folder: Path) -> None:
    (folder / "file").write_text("x")
    (folder / "file/x/y").mkdir(parents=True)


def in_place_of_a_folder(folder: Path) -> None:
    (folder / "file").write_text("x")
    (folder / "file").mkdir(exist_ok=True)


@pytest.mark.parametrize(
    ("work", "place", "reason", "remedy"),
    [
        (lambda d: full(d / "run"), "run", "the disk is full", "make room"),
        (lambda d: (d / "gone/x").read_bytes(), "gone/x", "no such file", "is the path right"),
        (lambda d: d.read_bytes(), "", "it is a folder", "name a file"),
        (lambda d: (d / ("n" * 300)).mkdir(), "n" * 300, "name is too long", "shorter"),
        (lambda d: (d / "a\0b").read_bytes(), "", "NUL", "take it out"),
        (loop, "a", "lead back to themselves", "itself"),
        (link_to_nothing, "link", "a link to /nowhere/at/all, which is not there", "mend the link"),
        (below_a_file, "file/x", "file is a file and no folder", "name another"),
        (in_place_of_a_folder, "file", "is there already, and is no folder", "move it away"),
    ],
)
def test_the_sentence_has_the_place_the_reason_and_what_to_do(tmp_path, work, place, reason, remedy):
    sentence = system_sentence(raised(lambda: work(tmp_path)))
    assert (f"{tmp_path / place}" in sentence or "NUL" in sentence) and reason in sentence and remedy in sentence
    assert "\n" not in sentence and "Errno" not in sentence


@pytest.mark.parametrize("number", sorted(REMEDIES))
def test_every_error_that_is_known_has_a_reason_and_a_remedy(number):
    sentence = system_sentence(OSError(number, os.strerror(number), "some/folder"))
    assert sentence.startswith("some/folder: ") and "; " in sentence and os.strerror(number) not in sentence


def test_other_errors_of_the_system_keep_their_words():
    assert "some/folder: no child processes" in system_sentence(OSError(errno.ECHILD, "x", "some/folder"))
    assert system_sentence(OSError("the hub could not be reached")) == "the hub could not be reached"


@pytest.mark.parametrize(
    "error", [ValueError("No space left on device"), KeyError("x"), RuntimeError("shapes differ"), PrefoptError("x")]
)
def test_errors_of_another_kind_are_left_alone(error):
    assert system_sentence(error) == ""
    assert raised(lambda: _raise_in_naming(error)) is error


def _raise_in_naming(error):
    with naming("folder"):
        raise error


def test_a_place_that_is_named_already_stays():
    assert raised(lambda: _raise_in_naming(OSError(errno.ENOSPC, "x", "mine"))).filename == "mine"


def _limited(folder, answers):
    """In a process that may write no file above 20 kB: what each way of writing raises, and what it leaves."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
    large = {"a": torch.zeros(100_000)}
    (folder / "log").write_bytes(b"before\n")

    def appended():
        with (folder / "log").open("ab", buffering=0) as file:
            append_whole(folder / "log", file, b"x" * 100_000)

    def staged(write):
        with replacing(folder / "model") as staging:
            write(staging)

    def folder_of(write):
        with replacing_folder(folder / "policy") as staging:
            staging.mkdir()
            write(staging / "weights")

    def database(path):
        disk = sqlite3.connect(path)
        disk.execute("create table t (x)")
        disk.execute("insert into t values (?)", (b"x" * 100_000,))
        disk.commit()

    works = {
        "text": lambda: write_whole(folder / "text", "x" * 100_000),
        "log": appended,
        "model": lambda: staged(lambda path: save_file(large, path)),
        "model by torch": lambda: staged(lambda path: torch.save(large, path)),
        "policy": lambda: folder_of(lambda path: save_file(large, path)),
        "policy by torch": lambda: folder_of(lambda path: torch.save(large, path)),
        "policy by sqlite": lambda: folder_of(database),
    }
    for name, work in works.items():
        try:
            work()
            answers.put((name, "nothing was raised"))
        except Exception as error:
            answers.put((name, system_sentence(error)))
    answers.put(("left", [*sorted(p.name for p in folder.iterdir()), (folder / "log").read_text()]))


def test_a_file_that_may_not_grow_names_itself_and_leaves_nothing_half_written(tmp_path):
    context = multiprocessing.get_context("fork")
    answers = context.Queue()
    process = context.Process(target=_limited, args=(tmp_path, answers))
    process.start()
    said = dict(answers.get(timeout=60) for _ in range(8))
    process.join()
    assert said.pop("left") == ["log", "before\n"]
    for name, sentence in said.items():
        vague = "torch" in name or "sqlite" in name  # they do not say why
        reason = "reports a fault; check it and the room on it" if vague else "may not grow that large"
        assert sentence.startswith(f"{tmp_path / name.split()[0]}: ") and reason in sentence, name


def _few_files(answers):
    resource.setrlimit(resource.RLIMIT_NOFILE, (30, 30))
    held = []
    try:
        while True:
            held.append(open("/dev/null"))  # noqa: SIM115
    except OSError as error:
        sentence = system_sentence(error)
    for file in held:
        file.close()
    answers.put(sentence)


def test_too_many_open_files_names_the_limit():
    context = multiprocessing.get_context("fork")
    answers = context.Queue()
    process = context.Process(target=_few_files, args=(answers,))
    process.start()
    assert "too many files open; raise the limit (ulimit -n)" in answers.get(timeout=60)
    process.join()


@pytest.mark.parametrize("error", [PrefoptError("x"), OSError(errno.ENOSPC, "x"), KeyboardInterrupt(), RuntimeError()])
def test_a_note_goes_with_whatever_ends_the_work_and_only_once(error):
    ended_by = []

    def note(error: BaseException) -> str:
        ended_by.append(error)
        return "kept in a/"

    with pytest.raises(type(error)) as caught, noting(note), noting(note), noting(lambda _: ""):
        raise error
    assert ended_by == [error, error]
    assert caught.value.__notes__ == ["kept in a/"]
