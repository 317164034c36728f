"""Whole runs: a killed one resumes as if nothing had been, and two processes do what one does."""

import json
import os
import random
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from _forked import Forked
from _tiny import tiny_model, tiny_pairs

from prefopt import PrefoptError, load_recipe, run
from prefopt.objectives import CATALOGUE
from prefopt.policy import load_policy, load_tokenizer
from prefopt.recipe import Policy
from prefopt.runs.planning import plan
from prefopt.support.fingerprints import fingerprint_weights

DRIFTING = Path(__file__).parents[1] / "updates.py"


@pytest.fixture
def recipe_file(tmp_path: Path) -> Path:
    """An adaptive objective and a supervised term with a source of its own: all that a checkpoint must hold."""
    model, data = tiny_model(tmp_path / "lm"), tiny_pairs(tmp_path / "pairs.jsonl", rows=60)
    content = {
        "policy": {"model": str(model)},
        "source": {"data": str(data)},
        "objective": [
            {"name": f"{DRIFTING}:Drifting"},
            {"name": "SFT", "weight": 0.2, "source": {"data": str(data)}},
        ],
        "train": {"steps": 30, "batch_size": 8, "minibatch_size": 4, "passes": 2, "lr": 1e-3, "checkpoint_every": 4},
        "evaluate": {"every": 7, "prompts": 4, "sampling": {"max_tokens": 6}},
        "track": {"folder": str(tmp_path / "runs")},
    }
    file = tmp_path / "recipe.yaml"
    file.write_text(json.dumps(content))
    return file


def metrics(folder: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [
        {name: value for name, value in line.items() if not name.endswith(("seconds", "padding"))} for line in lines
    ]


def weights(folder: Path) -> str:
    spec = Policy(model=(str(folder),))
    return fingerprint_weights(load_policy(spec, load_tokenizer(spec), 0))


@pytest.mark.slow
def test_a_killed_run_resumes_as_if_nothing_had_been(recipe_file: Path, tmp_path: Path) -> None:
    whole = run(load_recipe(recipe_file), folder=tmp_path / "whole").folder
    killed = tmp_path / "killed"
    child = Forked(["run", recipe_file, "--out", killed], tmp_path)
    moment = random.SystemRandom().randint(1, 25)
    deadline = time.monotonic() + 120
    while child.poll() is None and time.monotonic() < deadline:
        lines = (killed / "metrics.jsonl").read_text().splitlines() if (killed / "metrics.jsonl").exists() else []
        if len(lines) > moment:
            break
        time.sleep(0.002)
    child.kill()
    child.wait()
    assert not (killed / "summary.json").exists(), f"it was over before it could be killed at step {moment}"
    resumed = run(load_recipe(killed / "recipe.yaml"), folder=killed, resume=True)
    assert metrics(killed) == metrics(whole), f"killed at step {moment}"
    assert weights(killed / "policy") == weights(whole / "policy")
    assert resumed.change.keys() == run_estimates(whole)
    with pytest.raises(PrefoptError, match="is finished"):
        run(load_recipe(killed / "recipe.yaml"), folder=killed, resume=True)


def run_estimates(folder: Path) -> set[str]:
    return set(json.loads((folder / "summary.json").read_text())["change"])


@pytest.mark.slow
def test_two_processes_do_what_one_does(recipe_file: Path, tmp_path: Path) -> None:
    overrides = ["train.steps=3", "train.passes=1", "train.minibatch_size=null", "policy.dtype=float64"]
    one = run(load_recipe(recipe_file, overrides), folder=tmp_path / "one").folder
    two = tmp_path / "two"
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc_per_node",
        "2",
        "-m",
        "prefopt.cli",
    ]
    arguments = ["run", str(recipe_file), *overrides, "--out", str(two)]
    environment = os.environ | {"PYTHONPATH": ":".join(sys.path)}
    done = subprocess.run(
        [*command, *arguments], env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    for mine, theirs in zip(metrics(one), metrics(two), strict=True):
        assert mine.keys() == theirs.keys()
        for name, value in mine.items():  # None where samples are all the same, and there is no interval
            assert value == (None if value is None else pytest.approx(theirs[name], rel=1e-6, abs=1e-9)), name
    assert json.loads((two / "manifest.json").read_text())["device"]["processes"] == 2


def test_the_same_recipe_twice_gives_the_same_metrics(recipe_file: Path, tmp_path: Path) -> None:
    settings = load_recipe(recipe_file, ["train.steps=3"])
    one, two = (run(settings, folder=tmp_path / name).folder for name in ("one", "two"))
    assert metrics(one) == metrics(two)
    assert weights(one / "policy") == weights(two / "policy")


@pytest.mark.parametrize(
    ("step", "says"),
    [
        ("prefopt.training.loop.Trainer._learn", "step 1: out of memory; lower train.micro_batch_size"),
        ("prefopt.evaluation.evaluator.Evaluator._measured", "evaluation: out of memory; lower evaluate.batch_size"),
    ],
)
def test_a_run_that_is_out_of_memory_says_which_setting_to_lower(
    step: str, says: str, recipe_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(step, full)
    with pytest.raises(PrefoptError, match=says):
        run(load_recipe(recipe_file), folder=tmp_path / "run")


def test_two_objectives_with_one_seed_see_the_same_batches(recipe_file: Path, tmp_path: Path) -> None:
    orders = []
    for objective in ("DPO", "SFT"):
        settings = load_recipe(recipe_file, [f"objective={objective}", "train.steps=4", "train.minibatch_size=null"])
        folder = run(settings, folder=tmp_path / objective).folder
        manifest = json.loads((folder / "manifest.json").read_text())
        assert manifest["objectives"] == [{"name": objective, **vars(CATALOGUE[objective]())}]  # defaults as well
        orders.append(
            (manifest["data"], manifest["model"]["fingerprint"], [line.get("batch") for line in metrics(folder)])
        )
    assert orders[0][:2] == orders[1][:2]
    assert orders[0][2] == orders[1][2]
    assert any(orders[0][2])


def test_adapter_runs_keep_the_base_and_resume(recipe_file: Path, tmp_path: Path) -> None:
    overrides = ["policy.adapter={r: 2, alpha: 4}", "train.steps=4", "train.checkpoint_every=2"]
    settings = load_recipe(recipe_file, overrides)
    whole = run(settings, folder=tmp_path / "whole").folder
    (tmp_path / "part").mkdir()
    part = run(settings, folder=tmp_path / "part").folder
    (part / "summary.json").unlink()
    run(settings, folder=part, resume=True)
    assert (part / "policy" / "adapter_config.json").exists()
    assert metrics(part) == metrics(whole)
    size = (whole / "checkpoints" / "step-000004" / "model.safetensors").stat().st_size
    assert size < (tmp_path / "lm" / "model.safetensors").stat().st_size  # the base is on disk already


def test_plan_refuses_before_a_model_is_loaded(recipe_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def explode(*arguments: Any, **more: Any) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr("transformers.AutoModelForCausalLM.from_pretrained", explode)
    for override, message in {
        "objective=BradleyTerry": None,  # pairs train a scorer as well: nothing to refuse
        "objective=Nonsense": "unknown objective 'Nonsense'",
        "objective.name=DPO": "is a list",
        "policy.model=/nowhere": "no model at /nowhere",
        "source.data=/nowhere.jsonl": "nowhere.jsonl",
        "train.batch_size=1000": "1000",
    }.items():
        if message is None:
            plan(load_recipe(recipe_file, [override]))
            continue
        with pytest.raises(PrefoptError, match=message):
            run(load_recipe(recipe_file, [override]))


@pytest.mark.parametrize("lost", ["evaluation", "line", "both"])
@pytest.mark.parametrize("step", [0, 3])
def test_a_kill_beside_an_evaluation_neither_loses_nor_doubles_it(
    recipe_file: Path, tmp_path: Path, step: int, lost: str
) -> None:
    settings = load_recipe(recipe_file, ["train.steps=3", "train.checkpoint_every=2", "evaluate.prompts=0"])
    folder = run(settings, folder=tmp_path / "run").folder
    whole = metrics(folder)
    (folder / "summary.json").unlink()
    if lost != "line":
        (folder / "evaluations" / f"test-step-{step:06d}.json").unlink()
    lines = (folder / "metrics.jsonl").read_text().splitlines(keepends=True)
    if lost != "evaluation":  # nor, then, the line of validation rows, which is written after it
        lines = [
            line for line in lines if not (json.loads(line)["step"] == step and re.search("test/|validation/", line))
        ]
    if step == 0:  # a kill as early as that left no later line, and no checkpoint
        lines = [line for line in lines if json.loads(line)["step"] == 0]
        shutil.rmtree(folder / "checkpoints")
        (folder / "evaluations" / "test-step-000003.json").unlink()
        (folder / "trained.json").unlink()
    (folder / "metrics.jsonl").write_text("".join(lines))
    run(settings, folder=folder, resume=True)
    assert metrics(folder) == whole
