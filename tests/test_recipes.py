"""Every recipe that is shipped: it loads, says why it differs from its base, and trains."""

import json
import math
import re
from pathlib import Path

import pytest
import yaml
from rich.console import Console

from prefopt import load_recipe, run
from prefopt.objectives import CATALOGUE

FOLDER = Path(__file__).parent.parent / "recipes"
RECIPES = sorted(FOLDER.rglob("*.yaml"))
POCKET = [file for file in RECIPES if file.parent.name == "pocket" and file.stem != "base"]

REQUIRED_BY_OBJECTIVES = {
    "source": {"data", "arguments", "players", "embeddings", "ties"},
    "train": {"lr"},
    "reference": None,
}
"""What a recipe of the pocket world may change beside `objective`: sections, and keys in them; None for any."""


@pytest.mark.parametrize("file", RECIPES, ids=lambda file: f"{file.parent.name}/{file.stem}")
def test_loads(file, monkeypatch):
    monkeypatch.setenv("HOME", "/nowhere")
    load_recipe(file)


def test_every_objective_has_a_recipe():
    named = {term.name for file in POCKET for term in load_recipe(file).objective}
    assert sorted(set(CATALOGUE) - named) == []


@pytest.mark.parametrize("file", POCKET, ids=lambda file: file.stem)
def test_differs_from_the_base_only_where_its_objective_asks_for_it(file):
    tree = yaml.safe_load(file.read_text())
    assert tree.pop("base") == "base.yaml"
    objective = tree.pop("objective")
    first = (
        objective
        if isinstance(objective, str)
        else (objective[0] if isinstance(objective, list) else objective)["name"]
    )
    if len(load_recipe(file).objective) == 1:
        assert file.stem == first.lower() or "reference" in tree  # TR-DPO is a reference, not a loss
    for section, keys in tree.items():
        assert section in REQUIRED_BY_OBJECTIVES, f"{section} belongs in base.yaml"
        allowed = REQUIRED_BY_OBJECTIVES[section]
        assert allowed is None or set(keys) <= allowed, (
            f"{section}: {set(keys) - (allowed or set())} belong in base.yaml"
        )
    if tree:
        assert re.search(r"^\s*# \w", file.read_text(), re.MULTILINE), "say in a comment why it differs"


SMALL = [
    *(
        "source.arguments.n=12",
        "source.test.arguments.n=8",
        "source.split=[1,0,0]",
        "evaluate.rows=4",
        "evaluate.prompts=0",
    ),
    *("train.steps=2", "train.batch_size=4", "train.threads=1"),
]


@pytest.mark.parametrize("file", POCKET, ids=lambda file: file.stem)
def test_trains_two_steps(file, tmp_path):
    result = run(load_recipe(file, SMALL), tmp_path / "run", console=Console(quiet=True))
    steps = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in steps if "loss" in line] == [1, 2]
    assert all(math.isfinite(line["loss"]) and line["grad_norm"] > 0 for line in steps if "loss" in line)
    assert (result.folder / "policy" / "model.safetensors").exists()
