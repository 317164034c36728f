"""A run that was killed goes on in the same run of W&B, with all of its steps; read back from W&B's own files."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from _tiny import tiny_model, tiny_pairs, tiny_recipe
from _wandb import history, offline_folders, records, started

from prefopt.runs.folder import RunFolder

pytest.importorskip("wandb")

KILLED_AT, CHECKPOINT = 5, 4
PLUGIN = f"""
import os, pathlib, signal
def kill(step):
    if step.number == {KILLED_AT} and not pathlib.Path("killed").exists():
        pathlib.Path("killed").touch()
        os.kill(os.getpid(), signal.SIGKILL)
"""


def prefopt(home: Path, *arguments: object, **variables: str) -> tuple[int, str]:
    """Exit status and stderr, which goes to a file: a pipe would stay open as long as W&B's service outlives a kill."""
    command = [sys.executable, "-m", "prefopt.cli", *map(str, arguments)]
    environment = os.environ | {"WANDB_MODE": "offline"} | variables
    with (home / "stderr.txt").open("w+") as stderr:
        done = subprocess.run(command, cwd=home, env=environment, stdout=stderr, stderr=stderr, timeout=120)
    return done.returncode, (home / "stderr.txt").read_text()


@pytest.mark.slow
def test_a_killed_run_goes_on_in_the_same_run_of_wandb_with_every_step(tmp_path):
    (tmp_path / "plugin.py").write_text(PLUGIN)
    train = f"{{steps: 6, batch_size: 8, lr: 1e-3, checkpoint_every: {CHECKPOINT}, callbacks: ['./plugin.py:kill']}}"
    model, data = tiny_model(tmp_path / "lm"), tiny_pairs(tmp_path / "pairs.jsonl")
    file, run = (
        tiny_recipe(tmp_path, model, data, train=train, track="{wandb: {project: p}}"),
        RunFolder(tmp_path / "run"),
    )
    assert prefopt(tmp_path, "run", file, "--out", run)[0] == -9
    status, said = prefopt(tmp_path, "run", run, "--resume", WANDB_RUN_ID="shared", WANDB_ENTITY="lab")
    assert status == 0, said
    assert "WANDB_RUN_ID=shared in the environment changes nothing" in said.replace("\n", " ")
    (record,) = json.loads(run.manifest_file.read_text())["resumed"]
    assert record["environment.WANDB_ENTITY"] == [None, "lab"]
    folders = offline_folders(run.path)
    assert [folder.name.rpartition("-")[2] for folder in folders] == [run.tracker_id("wandb")] * 2
    resumed = records(folders[-1])
    assert started(resumed).run_id == run.tracker_id("wandb")
    sent = {line["_step"]: line for line in history(resumed)}
    for line in run.history():
        for name, value in line.items():
            assert name == "step" or sent[line["step"]][name] == pytest.approx(value), (line["step"], name)
    assert list(sent) == list(range(7))
