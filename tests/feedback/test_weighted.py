"""Several rewards of one completion: summed by weights, and kept apart."""

import math

import pytest
import torch
from accelerate import Accelerator

from prefopt import PrefoptError, Verdict, recipe
from prefopt.feedback import WeightedSum, check_feedback, make_feedback
from prefopt.feedback.calling import parts_of

PROMPTS, TEXTS, ROWS = ["p", "q"], [["a", "b"], ["c", "d"]], [{}, {}]
RIGHT, SHORT = [[1.0, 0.0], [0.0, math.nan]], [[3.0, 2.0], [0.5, 1.0]]


def member(scores, **fields):
    return lambda *_: Verdict(torch.tensor(scores), **fields)


def test_by_hand():
    verdict = WeightedSum({"right": 2.0, "short": -0.5}, (member(RIGHT), member(SHORT)))(PROMPTS, TEXTS, ROWS)
    expected = torch.tensor([[0.5, -1.0], [-0.25, math.nan]])
    torch.testing.assert_close(verdict.scores, expected, equal_nan=True)
    assert list(verdict.named) == ["right", "short"]
    torch.testing.assert_close(verdict.named["right"], torch.tensor(RIGHT), equal_nan=True)
    assert verdict.named["short"].tolist() == SHORT  # known where the sum is not


def test_steps_are_summed_where_they_are_and_in_the_named_score_of_their_member():
    given = Verdict(torch.tensor(RIGHT), steps=[[[1.0, 2.0], []], [[4.0], [8.0]]], named={"safe": torch.ones(2, 2)})
    verdict = WeightedSum({"right": 0.5, "short": 3.0}, (lambda *_: given, member(SHORT, notes=[{"why": "x"}, {}])))(
        PROMPTS, TEXTS, ROWS
    )
    assert verdict.steps == [[[0.5, 1.0], []], [[2.0], [4.0]]]
    assert set(verdict.named) == {"right", "short"}
    expected = torch.tensor([[1.0 + 3, 0.0], [0.0 + 4, math.nan]])
    torch.testing.assert_close(verdict.named["right"], expected, equal_nan=True)
    assert given.scores[0, 0] == 1  # the member's own are left alone
    assert verdict.notes[0] == {"members": [{}, {"why": "x"}]}


def test_a_recipe_names_each_member(tmp_path):
    lines = (
        "def f(prompts, completions, rows):",
        "    return [[float(len(text)) for text in texts] for texts in completions]",
    )
    (tmp_path / "own.py").write_text("\n".join(lines))
    own = f"{tmp_path}/own.py:f"

    def section(**weights):
        content = {
            "name": "WeightedSum",
            "weights": weights,
            "members": [own, {"name": own, "transforms": [{"name": "Clip", "high": 1}]}],
        }
        return recipe.Feedback.model_validate(content)

    verdict = make_feedback(section(long=0.5, any=2), Accelerator())(["p"], [["abc", ""]], [{}])
    assert verdict.scores.tolist() == [[3.5, 0.0]] and verdict.named["any"].tolist() == [[1.0, 0.0]]
    for weights, words in (({"long": 1}, "there are 2 members, and names long"), ({"long": 1, "any": "x"}, "weights")):
        with pytest.raises(PrefoptError, match=words):
            check_feedback(section(**weights))


def test_what_is_wrong_is_refused():
    with pytest.raises(ValueError, match="there are 2 members, and names right"):
        WeightedSum({"right": 1.0}, (member(RIGHT), member(SHORT)))
    with pytest.raises(PrefoptError, match=r"\(member 2\) returned scores of shape \[2, 1\]"):
        WeightedSum({"right": 1.0, "short": 1.0}, (member(RIGHT), member([[1.0], [2.0]])))(PROMPTS, TEXTS, ROWS)


def test_its_members_are_found():
    members = (member(RIGHT), member(SHORT))
    assert list(parts_of(WeightedSum({"right": 1.0, "short": 1.0}, members)))[1:] == list(members)
