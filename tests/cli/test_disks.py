"""Full and read-only disks, for real: a sentence with the place and a remedy, what was made is kept, and with room it goes on."""

import csv
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from prefopt.runs.folder import RunFolder

NAMESPACE = ["unshare", "--user", "--map-root-user", "--mount"]
DRIVER = Path(__file__).parents[1] / "_disks.py"


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    home = tmp_path_factory.mktemp("disks")
    if shutil.which("unshare") is None or subprocess.run([*NAMESPACE, "mount", "-t", "tmpfs", "x", home]).returncode:
        pytest.skip("this machine lets nobody mount in a namespace")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([*NAMESPACE, sys.executable, DRIVER, home], env=environment, check=True, timeout=280)
    return home


@pytest.fixture
def outcome(home):
    outcomes = json.loads((home / "outcomes.json").read_text())

    def of(name: str) -> tuple[int, str, list[str]]:
        assert "Traceback" not in outcomes[name]["stderr"]
        return outcomes[name]["status"], outcomes[name]["stderr"], outcomes[name]["there"]

    return of


def results(folder: Path) -> tuple[object, ...]:
    run = RunFolder(folder)
    summary = run.summary()
    del summary["costs"]["seconds"]
    lines = [{k: v for k, v in line.items() if k != "seconds"} for line in run.history()]
    return summary, lines, (run.policy / "model.safetensors").read_bytes()


ROOM = "the disk is full; make room there, or name a folder on another disk"


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("name", "status", "sentence", "kept", "there"),
    [
        ("run", 2, f"step-000006: {ROOM}", "step-000004 keeps what was done", "run/checkpoints/step-000004"),
        (
            "evaluation",
            2,
            f"test-step-000008.json: {ROOM}",
            "policy holds the trained model",
            "run/policy/model.safetensors",
        ),
        ("label", 2, f"labels/data.jsonl: {ROOM}", "what was labelled is kept in disk/labels/", "labels/data.jsonl"),
        (
            "study",
            1,
            f"step-000006: {ROOM}",
            "the same command tries them again",
            "study/arms/A/seed-0/checkpoints/step-000004",
        ),
    ],
)
def test_a_full_disk_ends_in_a_sentence_and_what_was_made_goes_on_to_the_same_end(
    home, outcome, name, status, sentence, kept, there
):
    code, said, files = outcome(f"{name}, full")
    assert code == status and sentence in said and kept in said and there in files
    assert not [file for file in files if ".writing" in file and "checkpoints" not in file]
    assert outcome(f"{name}, room")[0] == outcome(f"{name}, undisturbed")[0] == 0
    mine, whole = home / "kept" / f"{name}, full", home / "kept" / name
    if name == "label":
        rows = [json.loads(line) for line in (whole / "data.jsonl").read_text().splitlines()]
        assert [json.loads(line) for line in (mine / "data.jsonl").read_text().splitlines()] == rows and len(rows) == 40
    elif name == "study":
        assert table(mine) == table(whole) and len(table(whole)) > 0
    else:
        assert results(mine) == results(whole)


def table(folder: Path) -> list[dict[str, str]]:
    with (folder / "results.csv").open(newline="") as file:
        return [{name: value for name, value in row.items() if "seconds" not in name} for row in csv.DictReader(file)]


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("name", "place"), [("run", "other"), ("resume", "run"), ("label", "labels"), ("study", "study")]
)
def test_a_read_only_disk_is_named_and_nothing_changes(outcome, name, place):
    code, said, files = outcome(f"{name}, read-only")
    assert code == 2 and files == outcome("run, read-only")[2]
    assert f"disk/{place}" in said and "the file system is read-only; name a folder that can be written to" in said


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", ["cache, read-only", "cache, full"])
def test_a_cache_that_cannot_be_written_is_said_once_and_stops_no_run(outcome, name):
    code, said, _ = outcome(name)
    assert code == 0 and said.count("nothing is written to the cache") == 1
