"""The catalogue, and the reference pages made from code."""

from dataclasses import dataclass
from pathlib import Path

import pytest

from make import MARKER, pages
from prefopt.objectives import CATALOGUE
from prefopt.objectives.listing import default_needs, entries, entry, needs_in_words
from prefopt.recipe import Recipe, describe
from prefopt.runs.label import LabelRecipe
from prefopt.study import Study
from prefopt.support.errors import PrefoptError
from prefopt.types import Needs

DOCS = Path(__file__).parents[2] / "docs"


@pytest.mark.parametrize("page", ["label.md", "models.md", "objectives.md", "recipes.md", "studies.md", "trl.md"])
def test_page_is_up_to_date(page):
    made = pages(DOCS)[DOCS / page]
    assert (DOCS / page).read_text() == made, "out of date: python docs/make.py"


@pytest.mark.parametrize(
    ("page", "kind", "words"),
    [
        ("recipes.md", Recipe, "base: other.yaml"),
        ("label.md", LabelRecipe, "the same command goes on"),
        ("studies.md", Study, "arms × seeds"),
    ],
)
def test_page_has_every_field_and_keeps_what_is_written_by_hand(page, kind, words):
    written, made = pages(DOCS)[DOCS / page].split(MARKER)
    assert words in written
    for field in describe(kind):
        assert f"| `{field.key}` |" in made or f"### {field.key}\n" in made, field.key


def test_every_objective_has_what_people_look_for():
    assert [e.name for e in entries()] == sorted(CATALOGUE, key=str.lower)
    for e in entries():
        assert e.paper and e.needs and e.summary and "\n" not in e.summary, e.name
        assert len(e.summary) < 150, e.name


def test_objectives_page_shows_formulas_and_fields():
    text = pages(DOCS)[DOCS / "objectives.md"]
    assert "```text\nL = −log σ(β(Δ_w − Δ_l))," in text and "- `beta`: β, the strength" in text
    assert "[2305.18290](https://arxiv.org/abs/2305.18290)" in text


@pytest.mark.parametrize(
    ("needs", "words"),
    [
        (Needs(), "lists"),
        (Needs(completions=2, ordered=True, reference=True), "pairs, reference"),
        (Needs(completions=1, ordered=True), "the best completion"),
        (Needs(completions=1, scores=True), "one completion, scores"),
        (Needs(completions=4, rewards=True, columns=("cost",)), "4 completions, a scorer, cost"),
        (Needs(whole_batch=True, statistics=frozenset({"entropy"})), "lists, whole batch, entropy"),
    ],
)
def test_needs_in_words(needs, words):
    assert needs_in_words(needs) == words


def test_needs_that_depend_on_the_fields_are_those_of_the_defaults():
    assert "reference" in entry("GRPO").needs and "reference" not in entry("DAPO").needs

    @dataclass(frozen=True)
    class Undecided:
        beta: float
        needs = property(lambda self: Needs(reference=self.beta > 0))

    with pytest.raises(PrefoptError, match="Undecided depend on its fields"):
        default_needs(Undecided)
