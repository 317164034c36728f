"""Recipes of labellings: the same strict reading as those of runs."""

from pathlib import Path

import pytest

from prefopt.recipe import describe
from prefopt.runs.label import LabelRecipe, load_label_recipe
from prefopt.runs.label.recipe import in_the_way
from prefopt.support.errors import PrefoptError

LEAST = "source: {data: d.jsonl}\nfeedback: lab:rule\n"


def write(folder: Path, text: str, name: str = "label.yaml") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(text)
    return folder / name


def refusal(file: Path, *overrides: str) -> str:
    with pytest.raises(PrefoptError) as caught:
        load_label_recipe(file, overrides)
    return str(caught.value)


def test_least_recipe(tmp_path):
    found = load_label_recipe(write(tmp_path / "movies", LEAST))
    assert (found.name, found.feedback.name, found.policy, found.samples) == ("movies-label", "lab:rule", None, None)


def test_base_variables_and_files_beside_it(tmp_path):
    write(tmp_path, "", "rules.py")
    write(tmp_path, LEAST + "samples: {completions: 2}\npolicy: {model: '${pocket}'}\n", "base.yaml")
    text = "base: base.yaml\nvariables: {n: 7}\nprompts: ${n}\nfeedback: {name: 'rules.py:a', timeout: 5}\n"
    found = load_label_recipe(write(tmp_path, text), ["samples.sampling.temperature=0.5"])
    assert (found.prompts, found.samples.completions, found.samples.sampling.temperature) == (7, 2, 0.5)
    assert (found.feedback.name, found.feedback.timeout) == (f"{tmp_path}/rules.py:a", 5)
    assert load_label_recipe(write(tmp_path / "out", found.to_yaml())) == found


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("sharpnes=1", "unknown key `sharpnes`. Did you mean 'sharpness'?"),
        ("completions=2", "Did you mean 'samples.completions'?"),
        ("samples.sampling.temprature=1", "Did you mean 'temperature'?"),
        ("objective=DPO", "unknown key `objective`. A recipe has: name, variables"),
        ("samples.completions=2", "samples says how a policy writes"),
        ("policy={model: m, adapter: {}}", "nothing is trained here"),
        ("feedback=null", "`feedback`"),
        ("sharpness=0", "`sharpness` must be greater than 0"),
    ],
)
def test_values_that_cannot_be(tmp_path, override, expected):
    assert expected in refusal(write(tmp_path, LEAST), override)


def test_what_may_change_on_the_way(tmp_path):
    judge = "{name: Judge, rubric: r, server: {model: m, retries: 1}, budget: {calls: 5}}"
    file = write(tmp_path, LEAST.replace("lab:rule", judge))
    begun = load_label_recipe(file)
    free = ["batch_size=3", "threads=1", "feedback.timeout=9", "feedback.budget.calls=50", "feedback.server.retries=2"]
    assert in_the_way(begun, load_label_recipe(file, free)) == []
    assert in_the_way(begun, load_label_recipe(file, ["feedback.budget=null"])) == []
    fixed = ["seed=1", "sharpness=2", "feedback.server.model=n", "feedback.rubric=s", "prompts=4", "source.limit=3"]
    found = ["seed", "source.limit", "prompts", "feedback.rubric", "feedback.server.model", "sharpness"]
    assert sorted(in_the_way(begun, load_label_recipe(file, fixed))) == sorted(found)


def test_every_field_is_described():
    for field in describe(LabelRecipe):
        assert field.description and field.kind, field.key
