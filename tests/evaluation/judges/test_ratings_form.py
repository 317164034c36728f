"""Ratings that are no lists of numbers are refused with their row."""

import numpy as np
import pytest

from prefopt import PrefoptError
from prefopt.data import Example
from prefopt.evaluation.judges.ratings import RatedRow


def row(ratings, completions=("a",)):
    return Example("p", tuple(completions), where="d.jsonl:1", columns={"ratings": ratings})


@pytest.mark.parametrize(
    "ratings",
    [
        [1],
        [1.5],
        5,
        "good",
        [["good", "bad"]],
        [[1, None]],
        [[[1], [2]]],
        {"a": 1},
        [[float("nan")]],
        [["1", "x"]],
        [[1, [2]]],
        [None],
    ],
    ids=str,
)
def test_ratings_that_are_no_numbers_are_refused_with_their_row(ratings):
    with pytest.raises(PrefoptError, match=r"d\.jsonl:1: `ratings`"):
        RatedRow.of(row(ratings))


def test_ratings_as_they_are_documented_are_read():
    (known,) = RatedRow.of(row([[1, -1.5, 0]])).ratings
    assert np.array_equal(known, [1, -1.5, 0])
    assert len(RatedRow.of(row([np.array([1]), (2, 3)], ("a", "b"))).ratings) == 2
