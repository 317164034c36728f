"""Intervals: by hand, against scipy, and by how often they hold the truth."""

import math

import numpy as np
import pytest
from scipy import stats

from prefopt.evaluation.evaluation import Evaluation
from prefopt.evaluation.intervals import Halved, Observations, change, estimate, over_seeds


def observed(values, groups=None, weights=None) -> Observations:
    values = np.asarray(values, dtype=float)
    weights = np.ones_like(values) if weights is None else np.asarray(weights, dtype=float)
    return Observations(values, weights, [str(i) for i in range(len(values))] if groups is None else list(groups))


def clustered(draw: np.random.Generator, groups: int, truth: float = 0.0) -> Observations:
    """Groups of 1 to 6 observations that share an effect."""
    sizes = draw.integers(1, 7, groups)
    names = np.repeat(np.arange(groups), sizes)
    values = truth + draw.normal(size=groups)[names] + draw.normal(size=len(names))
    return observed(values, map(str, names))


def test_by_hand():
    by_token = observed([6, 1, 3], groups="aab", weights=[3, 1, 2])
    e = estimate(by_token)
    assert (e.value, e.prompts) == (10 / 6, 2)
    # Two groups resampled: aa (7/4), ab (10/6), bb (3/2); each end is reached in a quarter of the resamples.
    assert (e.low, e.high) == (1.5, 1.75)


def test_against_scipy_on_rows_that_are_their_own_groups():
    values = np.random.default_rng(1).normal(size=80)
    names = [f"{i:03d}" for i in range(80)]
    theirs = stats.bootstrap((values,), np.mean, n_resamples=2000, method="percentile", rng=np.random.default_rng(5))
    ours = estimate(observed(values, names), seed=5)
    assert (ours.low, ours.high) == pytest.approx(tuple(theirs.confidence_interval), rel=1e-12)


def test_seed_decides_and_confidence_widens():
    data = clustered(np.random.default_rng(2), 40)
    assert estimate(data) == estimate(data) != estimate(data, seed=1)
    wide, narrow = estimate(data, 0.99), estimate(data, 0.5)
    assert wide.low < narrow.low < narrow.high < wide.high


def test_order_of_rows_does_not_matter():
    data = clustered(np.random.default_rng(3), 30)
    order = np.random.default_rng(4).permutation(len(data.values))
    shuffled = Observations(data.values[order], data.weights[order], [data.groups[i] for i in order])
    one, other = estimate(data), estimate(shuffled)
    assert (one.value, one.low, one.high) == pytest.approx((other.value, other.low, other.high))


def test_groups_stay_together():
    """Copies of a row within its group are no new information; as groups of their own they would be."""
    values = np.random.default_rng(5).normal(size=50)
    names = [f"{i:02d}" for i in range(50)]
    once, copied = estimate(observed(values, names)), estimate(observed(np.tile(values, 9), names * 9))
    assert (once.low, once.high) == pytest.approx((copied.low, copied.high))
    apart = estimate(observed(np.tile(values, 9), [f"{i:03d}" for i in range(450)]))
    assert apart.high - apart.low < 0.5 * (once.high - once.low)


def test_coverage_with_clusters_of_unequal_size():
    draw, hits, rounds = np.random.default_rng(6), 0, 300
    for number in range(rounds):
        e = estimate(clustered(draw, 300, truth=1.0), seed=number)
        hits += e.low <= 1.0 <= e.high
    assert abs(hits / rounds - 0.95) <= 0.02


def test_where_all_prompts_say_the_same_there_is_no_interval_unless_the_quantity_is_bounded():
    """Of n of n it is Clopper and Pearson's; of a constant change what a share of other prompts could make of it."""
    right, before = observed([1.0] * 34), observed([0.5] * 34)
    assert all(map(math.isnan, (estimate(right).low, estimate(right).high)))
    theirs = stats.binomtest(34, 34).proportion_ci(0.95, method="exact")
    e = estimate(right, bounds=(0.0, 1.0))
    assert (e.value, e.low, e.high, e.prompts) == pytest.approx((1.0, theirs.low, 1.0, 34))
    none = estimate(observed([0.0] * 34), bounds=(0.0, 1.0))
    assert (none.low, none.high) == pytest.approx((0.0, 1 - theirs.low))
    gained, share = change(before, right, bounds=(0.0, 1.0)), theirs.low
    assert (gained.low, gained.high) == pytest.approx((0.5 * share - (1 - share), 0.5 * share + (1 - share)))
    assert math.isnan(change(before, right).low)
    varied = observed([1.0] * 33 + [0.0])
    assert estimate(varied) == estimate(varied, bounds=(0.0, 1.0))


def test_an_evaluation_knows_which_of_its_metrics_are_bounded():
    same = {name: observed([1.0] * 20) for name in ("accuracy", "hard/accuracy", "ended[source=a]", "length", "own")}
    estimates = Evaluation(same).estimates()
    assert {name for name, e in estimates.items() if e.low == e.low} == {"accuracy", "hard/accuracy", "ended[source=a]"}
    corpus = Evaluation({}, corpus={"distinct_2": Halved(1.0, np.ones(200), list("abcd"))})
    assert math.isnan(corpus.estimates()["distinct_2"].low)


def test_change_is_paired():
    draw = np.random.default_rng(7)
    before = clustered(draw, 60)
    after = Observations(
        before.values + 0.1 + 1e-3 * draw.normal(size=len(before.values)), before.weights, before.groups
    )
    e = change(before, after)
    assert e.low < e.value < e.high and (e.low, e.high) == pytest.approx((0.1, 0.1), abs=1e-3)
    assert change(after, before).value == pytest.approx(-e.value)
    noisy = change(before, Observations(draw.permutation(before.values), before.weights, before.groups))
    assert noisy.high - noisy.low > 0.2


def test_change_pairs_by_name_and_refuses_others():
    e = change(
        observed([1, 5], "ab"), observed([7, 2], "ba")
    )  # by 1 on a and by 2 on b; by position it would be 6 and −3
    assert (e.value, e.low, e.high) == (1.5, 1, 2)
    with pytest.raises(ValueError, match="different prompts"):
        change(observed([1, 2], "ab"), observed([1, 2], "ac"))


def test_too_few_have_no_interval():
    one, none = estimate(observed([3])), estimate(observed([]))
    assert one.value == 3 and math.isnan(one.low) and math.isnan(one.high) and one.prompts == 1
    assert math.isnan(none.value) and none.prompts == 0
    assert str(estimate(observed([1, 2]))) == "1.500 [1.000, 2.000]"


def test_students_interval_over_seeds():
    values = [1.0, 2.0, 4.0, 4.5]
    mean, half = over_seeds(values)
    low, high = stats.t.interval(0.95, 3, loc=np.mean(values), scale=stats.sem(values))
    assert (mean - half, mean + half) == pytest.approx((low, high))
    assert over_seeds([2.0])[0] == 2 and math.isnan(over_seeds([2.0])[1])
