"""YAML that no recipe is, numbers that are none, and names that cannot name a folder."""

from pathlib import Path

import pytest

from prefopt.recipe import file_name, folder_name, load_recipe, recipe_from
from prefopt.recipe.parsing import DEEPEST, parsed, refuse_shape
from prefopt.support.errors import PrefoptError

RECIPE = "policy: {model: m}\nsource: {data: d.jsonl}\nobjective: DPO\ntrain: {steps: 1}\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: &x {b: *x}", "holds itself"),
        ("a: &x [1, [*x]]", "holds itself"),
        ("a: " + "[" * 2000 + "]" * 2000, "levels deep"),
        ("a: " + "{b: " * 60 + "1" + "}" * 60, "levels deep"),
        ("a: 2024-13-45", "not YAML"),
    ],
)
def test_a_tree_without_an_end_is_refused_in_a_sentence(text: str, message: str) -> None:
    with pytest.raises(PrefoptError, match=message) as caught:
        parsed(text, "r.yaml")
    assert str(caught.value).startswith("r.yaml")


def test_aliases_that_multiply_are_refused_at_once() -> None:
    lines = ["a0: &a0 [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 20)]
    with pytest.raises(PrefoptError, match="multiply to"):
        parsed("\n".join(lines), "r.yaml")


def test_an_alias_that_is_used_twice_is_read() -> None:
    assert parsed("a: &x {b: 1}\nc: *x\n", "r.yaml") == {"a": {"b": 1}, "c": {"b": 1}}


def test_a_dict_of_python_that_holds_itself_is_refused() -> None:
    tree: dict = {"name": "x"}
    tree["policy"] = tree
    with pytest.raises(PrefoptError, match="holds itself"):
        recipe_from(tree)


def test_depth_is_counted_from_the_top() -> None:
    tree: list = []
    for _ in range(DEEPEST - 1):
        tree = [tree]
    refuse_shape(tree, "here")
    with pytest.raises(PrefoptError, match="levels deep"):
        refuse_shape([tree], "here")


@pytest.mark.parametrize(
    "override",
    [
        "train.lr=.nan",
        "train.lr=.inf",
        "train.lr=-.inf",
        "train.eps=.nan",
        "train.epochs=.inf",
        "train.clip_norm=.inf",
        "train.betas=[1.5, 0.9]",
        "train.betas=[0.9, 1]",
        "train.betas=[-0.1, 0.9]",
        "train.limits={loss: [.nan, 1]}",
        "objective.weight=.nan",
        "objective.weight=.inf",
        "objective.beta=.nan",
        "source.split=[.nan, 0, 1]",
        "source.arguments={n: .nan}",
        "evaluate.sampling.temperature=.nan",
        "evaluate.confidence=.nan",
        "feedback={name: 'f.py:f', strength: .nan}",
        "reference.mix=.nan",
        "a" + ".b" * 1000 + "=1",
        "source.data=''",
        "policy.model=''",
    ],
)
def test_numbers_of_a_recipe_are_numbers_and_names_name_something(tmp_path: Path, override: str) -> None:
    file = tmp_path / "r.yaml"
    file.write_text(RECIPE)
    load_recipe(file)
    with pytest.raises(PrefoptError) as caught:
        load_recipe(file, [override])
    key = override.partition("=")[0]
    assert key[:9] in str(caught.value)


@pytest.mark.parametrize("name", ["", " ", "a/b", "a\\b", "a\nb", "a\0b", "a\x1b[2J", "n" * 201, "é" * 101, "\ud800"])
def test_a_name_that_no_file_can_have_is_refused(name: str) -> None:
    for check in (file_name, folder_name):
        with pytest.raises(ValueError, match="cannot name a folder"):
            check(name)


@pytest.mark.parametrize("name", [".", "..", "..a", ".hidden"])
def test_a_folder_is_not_called_by_a_dot(name: str) -> None:
    with pytest.raises(ValueError, match="cannot name a folder"):
        folder_name(name)
    assert file_name(name) == name  # of a run: its seed comes after it


@pytest.mark.parametrize("name", ["a", "DPO β=0.1", "n" * 200, "模型", "a b", "x."])
def test_other_names_are_taken(name: str) -> None:
    assert folder_name(name) == name
