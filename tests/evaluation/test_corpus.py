"""Numbers of all samples together, and how far they would be off with other prompts."""

import json
import math

import numpy as np
import pytest

from prefopt import PrefoptError
from prefopt.evaluation.corpus import CorpusMetric, Distinct
from prefopt.evaluation.evaluation import Evaluation
from prefopt.evaluation.intervals import HALVES, Halved, halved


def test_distinct_words_and_pairs_of_words():
    texts = [["a b a"], ["a b"]]
    assert Distinct(texts, 1)(range(2)) == 2 / 5 and Distinct(texts, 2)(range(2)) == 2 / 3
    assert Distinct(texts, 2)([1]) == 1 and Distinct(texts, 1)([0]) == 2 / 3
    assert math.isnan(Distinct([["a"]], 2)([0])) and math.isnan(Distinct([["a b"], [""]], 1)([1]))


def groups(n: int) -> list[str]:
    return [f"prompt {i:03d}" for i in range(n)]


def test_of_a_mean_the_spread_over_halves_is_its_standard_error():
    draw = np.random.default_rng(0)
    for n in (40, 41):  # also where a half is not half of them
        values = draw.normal(size=n)
        many = halved(lambda rows, values=values: values[rows].mean(), groups(n), seed=1)
        estimate = many.estimate(0.95)
        assert many.value == values.mean() and estimate.prompts == n and len(many.halves) == HALVES
        width = 2 * 1.96 * values.std(ddof=1) / math.sqrt(n)
        assert estimate.high - estimate.low == pytest.approx(width, rel=0.15)
        assert estimate.low < many.value < estimate.high


def test_intervals_of_distinct_pairs_of_words_hold_the_number_of_new_prompts_where_a_bootstrap_never_does():
    draw = np.random.default_rng(0)
    odds = 1 / np.arange(1, 151)

    def texts(prompts: int = 40) -> list[list[str]]:
        return [[" ".join(map(str, row))] for row in draw.choice(150, (prompts, 10), p=odds / odds.sum())]

    truth = np.mean([Distinct(texts(), 2)(range(40)) for _ in range(300)])
    held = bootstrapped = 0
    for seed in range(60):
        distinct = Distinct(texts(), 2)
        estimate = halved(distinct, groups(40), seed).estimate(0.95)
        held += estimate.low <= truth <= estimate.high
        grams = [distinct.grams[distinct.rows == row] for row in range(40)]
        drawn = [np.concatenate([grams[i] for i in draw.integers(0, 40, 40)]) for _ in range(100)]
        low, high = np.quantile([len(set(one)) / len(one) for one in drawn], [0.025, 0.975])
        bootstrapped += low <= truth <= high
    assert held >= 51 and bootstrapped == 0


def test_a_difference_is_of_the_same_halves():
    values = np.random.default_rng(0).normal(size=30)
    before = halved(lambda rows: values[rows].mean(), groups(30), seed=3)
    after = halved(lambda rows: values[rows].mean() + 0.25, groups(30), seed=3)
    change = after.minus(before).estimate()
    assert (change.value, change.low, change.high) == pytest.approx((0.25, 0.25, 0.25))
    with pytest.raises(ValueError, match="different prompts"):
        after.minus(halved(lambda rows: 0.0, groups(29), seed=3))


def test_rows_of_one_group_stay_together():
    seen = []
    halved(lambda rows: seen.append(tuple(rows)) or 0.0, ["b", "a", "b", "a", "c", "c"], seed=0)
    assert set(seen[:-1]) == {(0, 2), (1, 3), (4, 5)} and seen[-1] == (0, 1, 2, 3, 4, 5)


@pytest.mark.parametrize("one", [Halved(1.0, np.array([]), ["a"]), Halved(1.0, np.array([1.0, math.nan]), ["a", "b"])])
def test_without_an_interval_there_is_still_the_number(one):
    estimate = one.estimate()
    assert estimate.value == 1.0 and math.isnan(estimate.low) and math.isnan(estimate.high)


def test_they_are_kept_in_files_and_changes_are_paired():
    numbers = {
        f"{when}": halved(lambda rows, by=by: rows.mean() * by, groups(8), 5) for when, by in (("0", 1), ("1", 2))
    }
    before, after = (Evaluation({}, corpus={"m": numbers[when]}, seed=5) for when in ("0", "1"))
    again = Evaluation.from_json(after.to_json())
    assert again.estimates() == after.estimates() and "m" in again.change_since(before)
    other = Evaluation({}, corpus={"m": numbers["0"]}, seed=6)
    assert "m" not in again.change_since(other)  # of other halves
    empty = Evaluation({}, corpus={"m": Halved(math.nan, np.array([1.0, math.nan]), ["a", "b"])})
    assert "NaN" not in empty.to_json() and math.isnan(Evaluation.from_json(empty.to_json()).corpus["m"].value)
    old = json.loads(after.to_json())
    del old["corpus"]
    assert Evaluation.from_json(json.dumps(old)).estimates() == {}


@pytest.mark.parametrize("answer", [[1.0], "many", {"a": 1}])
def test_what_is_not_one_number_is_refused(answer):
    with pytest.raises(PrefoptError, match=r"m\.py:f is over the corpus and must return one number of all samples"):
        CorpusMetric(lambda prompts, completions, rows: answer, "m.py:f")(["a"], [["b"]], [{}])


def test_none_is_no_number():
    assert math.isnan(CorpusMetric(lambda prompts, completions, rows: None, "m.py:f")(["a"], [["b"]], [{}]))
