"""The environment overrules no recipe: what would change an update has no say, and what changes arithmetic is said and recorded."""

import io
import json
import re

import pytest
from _tiny import tiny_model, tiny_pairs
from rich.console import Console

from prefopt import load_recipe, recipe, run
from prefopt.runs.folder import RunFolder
from prefopt.training.devices import computing
from prefopt.training.environment import ARITHMETIC, given, said


@pytest.fixture(scope="module")
def recipe_file(tmp_path_factory):
    home = tmp_path_factory.mktemp("home")
    content = {
        "policy": {"model": str(tiny_model(home / "lm"))},
        "source": {"data": str(tiny_pairs(home / "pairs.jsonl", rows=40))},
        "objective": "DPO",
        "train": {"steps": 2, "batch_size": 8, "lr": 0.5, "optimizer": "sgd"},
        "evaluate": {"prompts": 0},
    }
    (home / "recipe.yaml").write_text(json.dumps(content))
    return home / "recipe.yaml"


def numbers(recipe_file, folder):
    shown = io.StringIO()
    run(load_recipe(recipe_file), folder=folder, console=Console(file=shown, width=200))
    history = [(line["loss"], line["grad_norm"]) for line in RunFolder(folder).history() if "loss" in line]
    return history, shown.getvalue(), json.loads((folder / "manifest.json").read_text())


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "8"),
        ("ACCELERATE_MIXED_PRECISION", "bf16"),
        ("ACCELERATE_DYNAMO_BACKEND", "INDUCTOR"),
    ],
)
def test_what_a_launcher_says_of_training_changes_no_number(recipe_file, tmp_path, monkeypatch, name, value):
    usual, shown, _ = numbers(recipe_file, tmp_path / "usual")
    assert name not in shown
    monkeypatch.setenv(name, value)
    other, shown, _ = numbers(recipe_file, tmp_path / "other")
    assert other == usual
    assert f"{name}={value} in the environment changes nothing" in shown


def test_what_changes_the_arithmetic_is_said_and_recorded(recipe_file, tmp_path, monkeypatch):
    for name in ARITHMETIC:  # what the machine sets itself
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "1")
    _, shown, manifest = numbers(recipe_file, tmp_path / "run")
    assert re.search(r"NVIDIA_TF32_OVERRIDE=1\b.* in the environment changes the arithmetic", shown)
    assert manifest["environment"]["NVIDIA_TF32_OVERRIDE"] == "1"


def test_only_listed_variables_are_recorded_and_secrets_are_not_among_them():
    environment = {"NVIDIA_TF32_OVERRIDE": "0", "HF_TOKEN": "secret", "OPENAI_API_KEY": "secret", "MKL_CBWR": ""}
    assert given(environment=environment) == {"NVIDIA_TF32_OVERRIDE": "0"}
    assert not [name for name in ARITHMETIC if "KEY" in name or "TOKEN" in name]
    assert said(environment={"ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "1", "ACCELERATE_MIXED_PRECISION": "no"}) == []


def test_accumulation_and_compilation_are_those_of_the_recipe(recipe_file, monkeypatch):
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")
    monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", "EAGER")
    with computing(load_recipe(recipe_file).train) as accelerator:
        assert accelerator.gradient_accumulation_steps == 1
        assert accelerator.state.dynamo_plugin.backend.value == "NO"


def test_what_says_how_a_run_is_logged_is_said_only_of_a_run_that_is_logged():
    environment = {"WANDB_RUN_ID": "abc", "WANDB_RESUME": "allow", "WANDB_PROJECT": "other", "WANDB_ENTITY": "lab"}
    assert said(environment=environment) == []
    ids, places = said(recipe.Wandb(), environment)
    assert ids.startswith("WANDB_RUN_ID=abc, WANDB_RESUME=allow in the environment changes nothing: each run has an id")
    assert places.startswith("WANDB_PROJECT=other in the environment changes nothing: the recipe's `track.wandb`")
    assert said(recipe.Wandb(), environment | {"WANDB_SWEEP_ID": "s"}) == []  # an agent of W&B's starts this one run
