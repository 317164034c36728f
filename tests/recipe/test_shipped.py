"""Recipes and studies that come with the package are found by name, wherever one stands."""

import tomllib
from pathlib import Path

import pytest

from prefopt.recipe import load_recipe
from prefopt.recipe.shipped import SHIPPED, copied, found, shipped, summary
from prefopt.study.spec import load_study
from prefopt.support.errors import PrefoptError

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("name", ["pocket/dpo", "pocket/dpo.yaml", "recipes/pocket/dpo.yaml"])
def test_a_recipe_is_found_by_name_from_any_folder(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    assert found(name) == SHIPPED / "recipes" / "pocket" / "dpo.yaml"
    assert load_recipe(name, ["objective.beta=0.3"]).name == "pocket-dpo"


@pytest.mark.parametrize("name", ["five_methods", "experiments/five_methods/study.yaml"])
def test_a_study_is_found_by_name_with_its_recipes(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    study = load_study(name)
    assert study.name == "five-methods"
    assert load_recipe(study.arms["DPO"].recipe).objective[0].name == "DPO"


def test_a_file_of_ones_own_comes_before_one_that_ships(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    own = tmp_path / "pocket" / "dpo.yaml"
    own.parent.mkdir()
    own.write_text("base: nowhere.yaml\n")
    assert found("pocket/dpo.yaml").resolve() == own
    assert found(own) == own
    assert found("nowhere.yaml") == Path("nowhere.yaml")


def test_an_unknown_name_is_answered_with_the_nearest_or_with_where_the_list_is(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(PrefoptError, match=r"no recipe pocket/dpoo\. Did you mean 'pocket/dpo'\?"):
        load_recipe("pocket/dpoo")
    with pytest.raises(PrefoptError, match=r"no recipe nowhere\.yaml\. `prefopt recipes` lists"):
        load_recipe("nowhere.yaml")


def test_a_wheel_holds_everything_that_is_listed():
    wheel = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    included = wheel["force-include"]
    for _, file in shipped():
        here = str(file.relative_to(ROOT))
        assert any(here == source or here.startswith(f"{source}/") for source in included), here
    assert all(target == f"prefopt/shipped/{source}" for source, target in included.items())


def test_each_says_in_a_line_what_it_is():
    assert {name: text for name, file in shipped() if not (text := summary(file))} == {}


def test_copies_find_each_other(tmp_path):
    folder = copied(tmp_path / "mine")
    study = load_study(folder / "experiments" / "five_methods" / "study.yaml")
    assert Path(study.arms["DPO"].recipe).resolve() == (folder / "recipes" / "pocket" / "dpo.yaml").resolve()
    with pytest.raises(PrefoptError, match="is there already"):
        copied(folder)
