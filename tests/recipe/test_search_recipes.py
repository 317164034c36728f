"""Recipes in which a policy learns to search: each trains on the stage before it, and together they teach it."""

import json
import math
from pathlib import Path

import pytest
from rich.console import Console

from prefopt import load_recipe, run

SEARCH = Path(__file__).parents[2] / "recipes" / "pocket" / "agents" / "search"
SMALL = ["train.steps=2", "train.batch_size=4", "train.threads=1", "evaluate.rows=4", "evaluate.prompts=0"]


def trained(name, folder, *overrides):
    recipe = load_recipe(SEARCH / f"{name}.yaml", [f"variables.runs={folder}", *overrides])
    return run(recipe, folder=folder / name, console=Console(quiet=True))


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """A policy that has hardly begun."""
    folder = tmp_path_factory.mktemp("search")
    trained("sft", folder, *SMALL, "train.steps=8", "source.arguments.n=32")
    return folder


@pytest.mark.parametrize("name", ["grpo", "ppo", "dpo"])
def test_trains_two_steps(name, start):
    small = [*SMALL, "source.arguments.n=12", *(["train.minibatch_size=2"] if name == "ppo" else [])]
    trained(name, start, *small)
    steps = [json.loads(line) for line in (start / name / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in steps if "loss" in line]
    assert [line["step"] for line in steps] == [1, 2]
    assert all(math.isfinite(line["loss"]) for line in steps)
    assert name == "dpo" or all("environment/searches" in line for line in steps)


@pytest.mark.slow
def test_rewards_of_answers_teach_to_look_up_both_facts(tmp_path):
    small = ["train.threads=1", "evaluate.completions=1"]
    trained("sft", tmp_path, *small, "evaluate.prompts=0", "train.steps=200")
    result = trained("grpo", tmp_path, *small, "train.steps=18")
    before, after = result.before, result.after
    assert after["exact_match"].value > before["exact_match"].value + 0.3
    assert after["searches"].value > before["searches"].value + 0.3
    assert after["format"].value > 0.98
