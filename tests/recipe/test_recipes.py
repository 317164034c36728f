"""Every recipe that is shipped: it loads, says why it differs from its base, and trains."""

import dataclasses
import json
import math
import re
from pathlib import Path

import pytest
import yaml
from rich.console import Console

from prefopt import load_label_recipe, load_recipe, run
from prefopt.evaluation.judges.report import JudgeRecipe
from prefopt.feedback.judges.rubric_file import load_rubric
from prefopt.objectives import CATALOGUE
from prefopt.recipe import load, sections_of

FOLDER = Path(__file__).parents[2] / "recipes"
RECIPES = sorted(FOLDER.rglob("*.yaml"))
BASES = {"base", "online"}
POCKET = [file for file in RECIPES if file.parent.name == "pocket" and file.stem not in BASES]

REQUIRED_BY_OBJECTIVES = {
    "source": {"data", "arguments", "writers", "embeddings", "ties", "rollouts"},
    "train": {"lr", "passes", "minibatch_size"},
    "reference": None,
    "feedback": None,
    "cost": None,
}
"""What a recipe of the pocket world may change beside `objective`: sections, and keys in them; None for any."""

OTHERWISE_NAMED = {"onlinedpo", "trdpo"}
"""Not a loss of their own: a source, a reference."""


@pytest.mark.parametrize("file", RECIPES, ids=lambda file: f"{file.parent.name}/{file.stem}")
def test_loads(file, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path / "nowhere"))  # libraries that are imported now may make folders there
    sections = sections_of(file)
    if "question" in sections:
        load_rubric(str(file))
    elif "judge" in sections:
        load(JudgeRecipe, file)
    else:
        (load_label_recipe if file.stem == "label" else load_recipe)(file)


def test_every_objective_has_a_recipe():
    named = {term.name for file in POCKET for term in load_recipe(file).objective}
    assert sorted(set(CATALOGUE) - named) == []


@pytest.mark.parametrize("file", POCKET, ids=lambda file: file.stem)
def test_differs_from_the_base_only_where_its_objective_asks_for_it(file):
    tree = yaml.safe_load(file.read_text())
    online = load_recipe(file).source.rollouts is not None
    assert tree.pop("base") in ({"online.yaml", "ppo.yaml"} if online else {"base.yaml"})
    objective = tree.pop("objective")
    first = (
        objective
        if isinstance(objective, str)
        else (objective[0] if isinstance(objective, list) else objective)["name"]
    )
    if len(load_recipe(file).objective) == 1:
        assert file.stem == first.lower() or file.stem in OTHERWISE_NAMED
    for section, keys in tree.items():
        assert section in REQUIRED_BY_OBJECTIVES, f"{section} belongs in base.yaml"
        allowed = REQUIRED_BY_OBJECTIVES[section]
        assert allowed is None or set(keys) <= allowed, (
            f"{section}: {set(keys) - (allowed or set())} belong in base.yaml"
        )
    said = blocks(file.read_text())
    for section in tree:
        assert "#" in said[section], f"say in a comment in `{section}` why it differs from base.yaml"
    for term in load_recipe(file).objective:
        defaults = {field.name: field.default for field in dataclasses.fields(CATALOGUE[term.name])}
        own = {name: value for name, value in term.fields.items() if value != defaults[name]}
        assert not own or "#" in said["objective"], f"say in a comment above `objective` why it has {own}"


def blocks(text):
    """The text of each top-level key, with the comments right above it."""
    found, above = {}, ""
    for line in text.splitlines(keepends=True):
        if line.startswith("#"):
            above += line
        elif re.match(r"\w", line):
            key = line.partition(":")[0]
            found[key], above = above + line, ""
        else:
            found[key] += line
    return found


@pytest.mark.parametrize("file", POCKET, ids=lambda file: file.stem)
def test_every_objective_learns_from_as_many_texts(file):
    source = load_recipe(file).source
    if source.rollouts is not None:
        assert source.arguments == {"n": 3000}  # prompts
        return
    arguments = source.arguments
    assert arguments["n"] * arguments.get("k", 2) == 6000
    assert set(arguments) <= {"n", "k", "raters"}


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
    settings = load_recipe(file)
    small = [*SMALL, *(["source.rollouts.sampling.max_tokens=8"] if settings.source.rollouts else [])]
    small += ["train.minibatch_size=2"] if settings.train.minibatch_size else []
    result = run(load_recipe(file, small), folder=tmp_path / "run", console=Console(quiet=True))
    steps = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in steps if "loss" in line] == [1, 2]
    assert all(math.isfinite(line["loss"]) and line["grad_norm"] > 0 for line in steps if "loss" in line)
    assert (result.folder / "policy" / "model.safetensors").exists()
