"""Rows that labellings write: what was said, what was not, and what was known before."""

import json
import math

import numpy as np
import pytest
import torch

from prefopt.data.formats import parse
from prefopt.data.texts import texts
from prefopt.runs.label.rows import judged, preferences, written_out
from prefopt.support.errors import PrefoptError
from prefopt.types import Verdict

NAN = math.nan


def row_of(example, verdict, sharpness=None):
    (row,) = written_out([example], verdict, sharpness, [{"row": 3}])
    return json.loads(json.dumps(row, allow_nan=False))


def test_a_row_is_read_again_with_everything_in_it():
    example = parse({"prompt": "p", "completions": ["a", "b", "c"], "group": "g", "gold": [1, 2, 3], "topic": 5})
    preference = torch.tensor([[[0.5, 0.9, 0.5], [0.1, 0.5, 0.5], [0.5, 0.5, 0.5]]])
    verdict = Verdict(torch.tensor([[2.0, 1.0, NAN]]), preference, [{"why": "short", "tokens": 7}])
    row = row_of(example, verdict)
    assert row["scores"] == [2, 1, None] and row["notes"] == {"why": "short", "tokens": 7}
    again = parse(row)
    assert (again.prompt, again.completions, again.group) == ("p", ("a", "b", "c"), "g")
    assert again.scores == (2, 1, None)
    assert again.preference[0][1] == pytest.approx(0.9)
    assert again.columns["gold"] == [1, 2, 3] and again.columns["topic"] == 5
    assert again.columns["provenance"] == {"row": 3}


def test_conversations_stay_conversations():
    talk = [{"role": "user", "content": "hello"}]
    example = parse({"prompt": talk, "completion": [{"role": "assistant", "content": "you"}]})
    assert texts(example) == ["you"]
    again = parse(row_of(example, Verdict(torch.tensor([[1.0]]))))
    assert (again.prompt, again.completions) == (example.prompt, example.completions)


def test_several_turns_are_no_single_answer():
    turns = [
        {"role": "assistant", "content": "a"},
        {"role": "user", "content": "b"},
        {"role": "assistant", "content": "c"},
    ]
    with pytest.raises(PrefoptError, match="line 9: a completion of several turns"):
        texts(parse({"prompt": [{"role": "user", "content": "x"}], "completion": turns}, "line 9"))


def test_judgements_that_were_there_are_kept_apart():
    example = parse({"prompt": "p", "chosen": "a", "rejected": "b", "votes": [3, 1]})
    row = row_of(example, Verdict(torch.tensor([[0.0, 1.0]])))
    assert row["given"] == {"scores": [0.5, -0.5], "preference": [[0.5, 0.75], [0.25, 0.5]]}
    assert parse(row).preference is None and parse(row).scores == (0, 1)
    labelled = parse({"prompt": "p", "completion": "a", "label": False})
    row = row_of(labelled, Verdict(torch.tensor([[0.7]])))
    assert row["given"] == {"label": False, "scores": [-0.5]} and "label" not in row


def test_soft_labels_by_hand():
    verdict = Verdict(torch.tensor([[1.0, 0.5, NAN]]))
    assert preferences(verdict, None) is None
    p = 1 / (1 + math.exp(-2 * 0.5))
    expected = [[0.5, p, 0.5], [1 - p, 0.5, 0.5], [0.5, 0.5, 0.5]]
    assert np.allclose(preferences(verdict, 2.0)[0], expected)
    own = torch.full((1, 3, 3), 0.5)
    assert preferences(Verdict(verdict.scores, own), 2.0) is own
    assert preferences(Verdict(torch.tensor([[1.0]])), 2.0) is None


@pytest.mark.parametrize(
    ("scores", "enough"),
    [
        ([1.0], True),
        ([None], False),
        ([1.0, 2.0], True),
        ([1.0, None], False),
        ([None, None], False),
        ([1.0, None, 2.0], True),
    ],
)
def test_one_verdict_of_two_teaches_no_preference(scores, enough):
    assert judged({"scores": scores}) == enough
