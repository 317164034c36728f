"""Objects in the place of names: their texts tell one from another, and keep the object through copies and pickles."""

import copy
import pickle
from dataclasses import dataclass

import pandas
import pytest
import torch
from datasets import Dataset

from prefopt.support.errors import PrefoptError
from prefopt.support.given import Given, as_rows
from prefopt.support.plugins import load_object


@dataclass(frozen=True)
class Words:
    weight: float = 1.0

    def __call__(self, prompts, completions, rows):
        return [[self.weight * len(text.split()) for text in texts] for texts in completions]


class Letters:
    def __call__(self, prompts, completions, rows):
        return [[len(text) for text in texts] for texts in completions]


ROWS = [{"prompt": "a", "completion": "b", "score": 1.0}, {"prompt": "c", "completion": "d", "score": None}]


def test_a_text_tells_one_object_from_another():
    different = [Words, Words(), Words(2.0), Letters, Letters(), as_rows, load_object, ROWS, ROWS[:1]]
    assert len({str(Given(one)) for one in different}) == len(different)
    assert Given(Words(2)) == Given(Words(2)) and Given([dict(row) for row in ROWS]) == Given(ROWS)
    assert Given(Words).startswith("<python object: test_given.Words, ")
    assert Given(ROWS).startswith("<python object: 2 rows of a list, ")


def test_models_are_told_apart_by_their_weights():
    torch.manual_seed(0)
    one, other = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)
    assert Given(one) == Given(copy.deepcopy(one)) != Given(other)


def test_a_text_keeps_its_object():
    given = Given(Words)
    assert load_object(given) is Words and Given(given) is given
    assert copy.deepcopy({"name": given})["name"] is given
    assert pickle.loads(pickle.dumps(given)).object is Words


def test_the_text_alone_is_no_object():
    with pytest.raises(PrefoptError, match=r"which a recipe file cannot hold\. Pass the object again"):
        load_object("".join(Given(Words)))


def test_rows_of_every_kind():
    assert as_rows(ROWS) is ROWS
    assert as_rows(pandas.DataFrame(ROWS)) == ROWS
    assert list(as_rows(Dataset.from_list(ROWS)) or ()) == ROWS
    assert as_rows(["a.jsonl"]) is None and as_rows([]) is None and as_rows(Words) is None
