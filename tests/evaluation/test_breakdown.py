import math

import numpy as np
import pytest
import torch

from prefopt import PrefoptError
from prefopt.data import Example, Tokenised
from prefopt.evaluation.breakdown import Measured, broken_down, check_by
from prefopt.evaluation.intervals import estimate


def row(group, **columns):
    example = Example(f"prompt {group}", group=str(group), columns=columns)
    return Tokenised((1,), ((2,),), None, None, example, 0, None)


ROWS = [row(0, source="movies", level=1), row(1, source="books", level=2), row(2, source="movies"), row(2, level=1)]


def test_every_metric_is_also_given_for_the_rows_of_each_value():
    values = torch.tensor([[1.0, 3.0], [10.0, math.nan], [5.0, 7.0], [100.0, 100.0]])
    observed = broken_down({"gold": Measured(values, ROWS)}, ["source", "level"])
    assert {name: (o.values.tolist(), list(o.groups)) for name, o in observed.items()} == {
        "gold": ([1, 3, 10, 5, 7, 100, 100], ["0", "0", "1", "2", "2", "2", "2"]),
        "gold[source=books]": ([10], ["1"]),
        "gold[source=movies]": ([1, 3, 5, 7], ["0", "0", "2", "2"]),
        "gold[level=1]": ([1, 3, 100, 100], ["0", "0", "2", "2"]),
        "gold[level=2]": ([10], ["1"]),
    }
    assert estimate(observed["gold[source=movies]"]).prompts == 2


def test_weights_go_with_their_rows():
    measured = Measured(torch.tensor([6.0, 4.0, 2.0, 8.0]), ROWS, weights=torch.tensor([3, 2, 1, 4]))
    of_movies = broken_down({"nll": measured}, ["source"])["nll[source=movies]"]
    np.testing.assert_array_equal([of_movies.values, of_movies.weights], [[6, 2], [3, 1]])
    assert estimate(of_movies).value == 2


@pytest.mark.parametrize(
    ("column", "rows", "message"),
    [
        ("sorce", ROWS, r"no test row has a column 'sorce'\. Did you mean 'source'\? They have: level, source"),
        ("source", [row(0)], r"no test row has a column 'source'\. They have no further column"),
        ("gold", [row(0, gold=[1.0, 2.0])], r"'gold' does not hold one word or number for each prompt"),
        ("source", [row(i, source=i) for i in range(21)], r"'source' has 21 values in the test rows \(0, 1, 10, …\)"),
    ],
)
def test_columns_that_cannot_break_anything_down_are_refused(column, rows, message):
    with pytest.raises(PrefoptError, match=message):
        check_by([column], [one.example for one in rows], "test")


def test_twenty_values_are_few_enough():
    check_by(["source"], [row(i, source=i).example for i in range(20)], "test")
