"""Objects where a recipe has names: kept through the schema, overrides and copies, and shown readably in YAML."""

from dataclasses import dataclass

import pytest
import yaml

from prefopt import PrefoptError, load_recipe, recipe
from prefopt.objectives.preference.dpo import DPO
from prefopt.recipe import Recipe, recipe_from
from prefopt.support.given import Given

ROWS = [{"prompt": "a", "chosen": "b", "rejected": "c"}] * 3

TREE = {"policy": {"model": "lm"}, "source": {"data": ROWS}, "objective": DPO, "train": {"steps": 1}}


@dataclass
class Words:
    weight: float = 1.0

    def __call__(self, prompts, completions, rows):
        return [[self.weight * len(text.split()) for text in texts] for texts in completions]


def words(prompts, completions, rows):
    return [[len(text.split()) for text in texts] for texts in completions]


def objects(settings: Recipe) -> list:
    """What stands in the recipe for each name, as an object."""
    names = [settings.source.data[0], settings.objective[0].name]
    return [name.object for name in names if isinstance(name, Given)]


def test_objects_stay_objects_through_overrides_and_copies():
    settings = recipe_from(TREE, ["train.lr=0.1"], {"feedback": words, "evaluate.metrics": {"words": Words(2)}})
    assert objects(settings) == [ROWS, DPO] and settings.train.lr == 0.1
    assert settings.feedback is not None and settings.feedback.name.object is words  # type: ignore[attr-defined]
    assert settings.evaluate.metrics["words"].name.object == Words(2)  # type: ignore[attr-defined]
    again = recipe_from(settings, ["objective.0.beta=0.3"])
    assert objects(again) == [ROWS, DPO] and again.objective[0].fields == {"beta": 0.3}
    assert objects(again.model_copy(update={"seed": 2})) == [ROWS, DPO]


def test_what_is_written_is_readable_and_read_back(tmp_path):
    settings = recipe_from(TREE, objects={"train.callbacks": words, "evaluate.gold": Words()})
    file = tmp_path / "recipe.yaml"
    file.write_text(settings.to_yaml())
    content = yaml.safe_load(file.read_text())
    assert content["source"]["data"][0].startswith("<python object: 3 rows of a list, ")
    assert content["objective"][0]["name"].startswith("<python object: prefopt.objectives.preference.dpo.DPO, ")
    assert content["train"]["callbacks"][0]["name"].startswith("<python object: test_objects.words, ")
    read = load_recipe(file)
    assert not objects(read)
    assert recipe.differences(read.model_dump(mode="json"), settings.model_dump(mode="json")) == {}
    other = recipe_from(settings, objects={"evaluate.gold": Words(2)})
    changed = recipe.differences(read.model_dump(mode="json"), other.model_dump(mode="json"))
    assert list(changed) == ["evaluate.gold.name"]


def test_a_field_of_a_section_may_be_an_object():
    settings = recipe_from(TREE, objects={"feedback": {"name": Words, "weight": Words(3)}})
    assert settings.feedback is not None and settings.feedback.fields == {"weight": Words(3)}
    assert "weight: '<python object: test_objects.Words" in settings.to_yaml()


def test_lists_in_a_field_may_hold_objects():
    fields = {"name": Words, "weight": [words, {"of": Words(3), "to": (1, "a")}]}
    settings = recipe_from(TREE, objects={"feedback": fields})
    assert settings.feedback is not None and settings.feedback.fields == {"weight": fields["weight"]}
    assert "weight:\n  - '<python object: test_objects.words, " in settings.to_yaml()


def test_values_that_are_no_names_are_still_refused():
    with pytest.raises(PrefoptError, match="feedback"):
        recipe_from(TREE, objects={"feedback": 5})
    with pytest.raises(PrefoptError, match="and a run folder as folder="):
        recipe_from(TREE, [3])  # type: ignore[list-item]
    with pytest.raises(PrefoptError, match="metrics measure samples"):
        recipe_from(TREE, ["evaluate.prompts=0"], {"evaluate.metrics": {"words": words}})
