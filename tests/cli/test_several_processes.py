"""Verbs under a launcher: what is for a person is printed once, and written once."""

import json
import os
import subprocess
import sys

import pytest
from _tiny import tiny_model, tiny_pairs, tiny_recipe

from prefopt.cli import consoles, main

TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", "prefopt.cli"]


@pytest.mark.parametrize(
    ("environment", "main_process"),
    [
        ({}, True),
        ({"RANK": "1"}, True),  # of a container; nobody launched several
        ({"WORLD_SIZE": "1", "RANK": "0"}, True),
        ({"WORLD_SIZE": "2", "RANK": "0"}, True),
        ({"WORLD_SIZE": "2", "RANK": "1"}, False),
        ({"OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_RANK": "3"}, False),
    ],
)
def test_the_main_process_is_known_from_the_environment(monkeypatch, environment, main_process):
    for name in (*consoles.SIZES, *consoles.RANKS):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert consoles.is_main_process() is main_process


def test_another_process_than_the_main_one_prints_no_result_and_its_errors(monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        main(["objectives", "DPO"])
        assert bool(capsys.readouterr().out) is (rank == "0")
    with pytest.raises(SystemExit):
        main(["objectives", "no-such-thing"])
    assert "no-such-thing" in capsys.readouterr().err
    monkeypatch.undo()
    main(["objectives", "DPO"])  # the consoles are as before
    assert capsys.readouterr().out


@pytest.mark.slow
def test_two_processes_print_each_table_once(tmp_path):
    """Of a run, an evaluation of it into a file, and a metric that is added."""
    recipe = tiny_recipe(tmp_path, tiny_model(tmp_path / "lm"), tiny_pairs(tmp_path / "pairs.jsonl"))
    (tmp_path / "m.py").write_text(
        "def words(prompts, completions, rows):\n    return [[float(len(t.split())) for t in ts] for ts in completions]\n"
    )

    def twice(*arguments: str) -> subprocess.CompletedProcess[str]:
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, *TORCHRUN, *arguments]
        done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr[-3000:]
        return done

    run = str(tmp_path / "run")
    trained = twice("run", str(recipe), "train.epochs=null", "train.steps=2", "evaluate.prompts=2", "--out", run)
    assert trained.stdout.count("held-out rows (test") == trained.stdout.count("results   ") == 1
    assert trained.stderr.count("run folder ") == 1
    measured = twice("evaluate", run, "--out", "numbers.json")
    assert measured.stdout.count("test rows") == measured.stdout.count("distinct_1") == 1
    assert "accuracy" in str(json.loads((tmp_path / "numbers.json").read_text()))
    added = twice("evaluate", run, "--add", "evaluate.metrics.words=m.py:words")
    assert added.stdout.count("added, with") == added.stdout.count("kept      ") == 1
