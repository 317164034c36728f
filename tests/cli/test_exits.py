"""How every verb ends: the exit status is the truth, what stopped it is a sentence, and a signal says what was kept."""

import errno
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from _forked import Forked
from _tiny import tiny_model, tiny_pairs, tiny_recipe

from prefopt.cli import main
from prefopt.support.errors import PrefoptError

VERBS = {
    "run": ("prefopt.recipe.load_recipe", ["r.yaml"]),
    "study": ("prefopt.study.spec.load_study", ["s.yaml"]),
    "evaluate": ("prefopt.recipe.sections_of", ["r.yaml"]),
    "sample": ("prefopt.recipe.load_recipe", ["r.yaml"]),
    "label": ("prefopt.runs.label.recipe.load_label_recipe", ["l.yaml", "--out", "labels"]),
    "report": ("prefopt.runs.records.find_runs", ["runs"]),
    "export": ("prefopt.runs.exporting.export", ["run", "out"]),
    "push": ("prefopt.runs.pushing.push", ["run", "owner/name"]),
    "benchmark": ("prefopt.runs.benchmark.measuring.benchmark", ["run", "--data", "rows.jsonl"]),
    "check": ("prefopt.objectives.load_objective", ["DPO"]),
    "objectives": ("prefopt.objectives.listing.entries", []),
    "recipes": ("prefopt.recipe.shipped.shipped", []),
    "runs": ("prefopt.runs.listing.listed_runs", ["folder"]),
    "cache": ("prefopt.support.caches.usage", []),
}
"""Each verb: the first thing it calls, and arguments."""


def test_every_verb_is_in_the_table(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    said = capsys.readouterr().out
    assert set(re.findall(r"^    ([a-z]+)\b", said, re.MULTILINE)) == set(VERBS)


@pytest.fixture(autouse=True)
def heeds_ctrl_c():
    """A test run in the background ignores SIGINT, as shells have it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def ended(monkeypatch, capsys, verb: str, what) -> tuple[int, str]:
    """Exit status and stderr of a verb in which this happens."""
    target, arguments = VERBS[verb]
    monkeypatch.setattr(target, what)
    with pytest.raises(SystemExit) as caught:
        main([verb, *arguments])
    return caught.value.code, capsys.readouterr().err.replace("\n", " ")


def raising(error):
    def raises(*arguments, **more):
        raise error

    return raises


def signalled(number):
    def kills(*arguments, **more):
        os.kill(os.getpid(), number)
        time.sleep(10)

    return kills


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize(
    ("number", "status", "sentence"),
    [
        (signal.SIGINT, 130, "interrupted"),
        (signal.SIGTERM, 143, "ended by SIGTERM"),
        (signal.SIGHUP, 129, "the terminal was closed"),
    ],
)
def test_a_signal_ends_every_verb_in_a_sentence(monkeypatch, capsys, verb, number, status, sentence):
    before = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
    code, said = ended(monkeypatch, capsys, verb, signalled(number))
    assert code == status and said.startswith(sentence) and "Traceback" not in said
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)] == before


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize(
    ("error", "status", "sentence"),
    [
        (PrefoptError("the key is wrong"), 2, "error the key is wrong"),
        (OSError(errno.ENOSPC, "x", "out/file"), 2, "error out/file: the disk is full; make room there"),
        (OSError(errno.EROFS, "x", "out/file"), 2, "error out/file: the file system is read-only"),
        (PermissionError(errno.EACCES, "x", "out/file"), 2, "error out/file: permission is denied"),
        (NotADirectoryError(errno.ENOTDIR, "x", "a/b"), 2, "error a/b: a part of this path is a file"),
        (ZeroDivisionError("by zero \x1b[2J"), 1, "error Traceback"),
    ],
    ids=["refused", "full", "read-only", "denied", "file", "fault"],
)
def test_an_error_ends_every_verb_in_a_sentence_and_a_status(monkeypatch, capsys, verb, error, status, sentence):
    code, said = ended(monkeypatch, capsys, verb, raising(error))
    assert code == status and said.startswith(sentence)
    assert ("Traceback" in said) == (status == 1) == ("please report it" in said)
    assert "\x1b" not in said


def test_the_last_note_is_told_and_no_other(monkeypatch, capsys):
    error = PrefoptError("the judge fails")
    error.add_note("kept in the run")
    error.add_note("kept in the study")
    assert ended(monkeypatch, capsys, "run", raising(error)) == (2, "error the judge fails kept in the study ")


def test_a_signal_that_is_ignored_stays_ignored(monkeypatch, capsys):
    """As by nohup, so that a run outlives the terminal that it was started in."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:

        def survives(*arguments, **more):
            os.kill(os.getpid(), signal.SIGHUP)
            raise PrefoptError("went on")

        assert ended(monkeypatch, capsys, "run", survives) == (2, "error went on ")
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def prefopt(*arguments: object, **options) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "prefopt.cli", *map(str, arguments)]
    return subprocess.run(command, stderr=subprocess.PIPE, text=True, timeout=120, **options)


def test_results_that_cannot_be_printed_are_no_success():
    with open("/dev/full", "w") as full:
        done = prefopt("objectives", stdout=full)
    assert done.returncode == 2 and "the disk is full" in done.stderr and "Traceback" not in done.stderr


def test_a_terminal_that_knows_few_letters_is_no_reason_to_fail():
    done = prefopt("objectives", "DPO", stdout=subprocess.PIPE, env=os.environ | {"PYTHONIOENCODING": "ascii"})
    assert done.returncode == 0 and r"\xb7 beta=0.1" in done.stdout


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("exits")
    tiny_model(folder / "model")
    tiny_pairs(folder / "pairs.jsonl")
    (folder / "slow.py").write_text(
        "import time, pathlib\n"
        "def score(prompts, completions, rows):\n"
        "    pathlib.Path('asked').touch()\n"
        "    time.sleep(0.3)\n"
        "    return [[float(len(c)) for c in cs] for cs in completions]\n"
        "def step(step):\n"
        "    time.sleep(0.2)\n"
    )
    tiny_recipe(folder, folder / "model", folder / "pairs.jsonl")
    (folder / "study.yaml").write_text(
        "recipe: recipe.yaml\nseeds: 1\nmetric: accuracy\n"
        "common: {train.steps: 200, train.checkpoint_every: 2, train.callbacks: ['slow.py:step']}\n"
        "arms: {A: {}, B: {objective.beta: 0.3}}\n"
    )
    (folder / "label.yaml").write_text(
        "source: {data: pairs.jsonl}\nfeedback: slow.py:score\nbatch_size: 2\nthreads: 1\n"
    )
    return folder


SLOW = ["train.steps=200", "train.callbacks=[slow.py:step]"]
LONG = {
    "run": (["run", "recipe.yaml", *SLOW, "train.checkpoint_every=2", "--out", "{out}"], "{out}/checkpoints/step-*"),
    "run without a checkpoint": (["run", "recipe.yaml", *SLOW, "--out", "{out}"], "{out}/metrics.jsonl"),
    "study": (["study", "study.yaml", "--out", "{out}"], "{out}/arms/A/seed-0/checkpoints/step-*"),
    "study, two jobs": (["study", "study.yaml", "--jobs", "2", "--out", "{out}"], "{out}/arms/B/*/checkpoints/step-*"),
    "label": (["label", "label.yaml", "--out", "{out}"], "{out}/data.jsonl"),
    "evaluate": (["evaluate", "recipe.yaml", "evaluate.gold=slow.py:score", "evaluate.prompts=20"], "asked"),
}
KEPT = {
    "run": "checkpoints/step-0000",
    "run without a checkpoint": "begins again at step 0: prefopt run",
    "study": "0 of 2 runs are finished, 1 begun; the same command goes on",
    "study, two jobs": "0 of 2 runs are finished, [12] begun; the same command goes on",  # one process may start late
    "label": "what was labelled is kept in",
    "evaluate": "",
}


def _all_gone(group: int, seconds: float = 20) -> bool:
    """Whether no process of a group is left, in a while."""
    limit = time.monotonic() + seconds
    while time.monotonic() < limit:
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.2)
    return False


@pytest.mark.slow
@pytest.mark.parametrize(
    ("what", "number", "group"),
    [
        ("run", signal.SIGTERM, False),
        ("run", signal.SIGINT, True),
        ("run without a checkpoint", signal.SIGHUP, True),
        ("study", signal.SIGTERM, False),
        ("study, two jobs", signal.SIGTERM, False),
        ("study, two jobs", signal.SIGTERM, True),
        ("study, two jobs", signal.SIGINT, True),
        ("label", signal.SIGTERM, False),
        ("label", signal.SIGINT, True),
        ("evaluate", signal.SIGTERM, False),
    ],
)
def test_a_signal_in_the_middle_of_the_work_says_what_was_kept(world, tmp_path, what, number, group):
    """Sent to the process alone, as `kill` does, or to its group, as a terminal does."""
    arguments, sign = LONG[what]
    out = tmp_path / "out"
    (world / "asked").unlink(missing_ok=True)
    said = tmp_path / "stdout.txt", tmp_path / "stderr.txt"
    process = Forked([a.format(out=out) for a in arguments], world, said=said, own_group=True)
    pattern = Path(sign.format(out=out))
    base, glob = (world, sign) if what == "evaluate" else (tmp_path, str(pattern.relative_to(tmp_path)))
    limit = time.monotonic() + 100
    while not list(base.glob(glob)):
        assert process.poll() is None and time.monotonic() < limit
        time.sleep(0.05)
    (os.killpg if group else os.kill)(process.pid, number)
    assert process.wait(30) == 128 + number
    told = said[1].read_text()
    assert "Traceback" not in told and re.search(KEPT[what], told.replace("\n", " "))
    assert not list(tmp_path.rglob("error*.txt"))  # an interrupt is no failure of a study's run
    assert _all_gone(process.pid)
