from functools import partial

import numpy as np
import pytest
from scipy import stats

from prefopt.evaluation.judges.agreement import (
    Rated,
    against_the_rest,
    auc,
    discrimination,
    of_singles,
    rank_correlation,
    resampled,
    right,
    two_raters,
    with_a_rater,
)


def once(n):
    """One sample in which everything is once."""
    return np.ones((1, n))


def drawn(n=400, raters=8, noise=1.0, judge=0.5, seed=0):
    """Texts of a hidden quality, raters who see it with noise, and a judge who sees it with another."""
    draw = np.random.default_rng(seed)
    quality = draw.normal(size=n)
    ratings = quality[:, None] + noise * draw.normal(size=(n, raters))
    return Rated(quality + judge * draw.normal(size=n), ratings, draw.uniform(10, 100, size=n))


@pytest.mark.parametrize(
    ("scores", "good", "expected"),
    [
        ([3, 2, 1, 0], [1, 1, 0, 0], 1.0),
        ([0, 1, 2, 3], [1, 1, 0, 0], 0.0),
        ([1, 1, 1, 1], [1, 0, 1, 0], 0.5),
        ([2, 1, 1, 0], [1, 1, 0, 0], 0.875),  # of four comparisons three are won and one is a tie
    ],
)
def test_auc_by_hand(scores, good, expected):
    assert auc(np.array(scores, float), np.array(good, bool)) == [expected]


def test_auc_is_mann_whitneys_u():
    draw = np.random.default_rng(1)
    scores, good = draw.integers(0, 6, size=80).astype(float), draw.random(80) < 0.4
    u = stats.mannwhitneyu(scores[good], scores[~good]).statistic
    assert auc(scores, good)[0] == pytest.approx(u / (good.sum() * (~good).sum()))
    assert np.isnan(auc(scores, np.ones(80, bool)))
    counts = draw.integers(0, 3, size=80)  # a sample in which some are twice and others not at all
    again = auc(np.repeat(scores, counts), np.repeat(good, counts))
    np.testing.assert_allclose(auc(scores, good, counts[None].astype(float)), again)


def test_texts_at_the_middle_are_left_out():
    ratings = np.array([[1.0, 1.0], [0.0, 0.0], [-1.0, -1.0]])
    assert discrimination(Rated(np.array([2.0, -9.0, 1.0]), ratings, np.zeros(3)), once(3)) == [1.0]


def test_a_judge_that_is_a_rater_agrees_as_one_does():
    """Whoever sees the quality with a rater's noise has a rater's agreement with the rest; the truth is the same for both."""
    rated = drawn(n=4000, noise=1.0, judge=1.0)
    judge, raters = (against_the_rest(rated, once(4000), who)[0] for who in (False, True))
    assert judge == pytest.approx(raters, abs=0.015)
    better = drawn(n=4000, noise=1.0, judge=0.3)
    assert against_the_rest(better, once(4000), False)[0] > raters + 0.05


def test_a_rater_is_not_measured_against_itself():
    """Ratings of pure noise agree with the mean of all raters, of which they are a part, and not with the others' mean."""
    noise = Rated(np.zeros(2000), np.random.default_rng(2).normal(size=(2000, 3)), np.zeros(2000))
    assert against_the_rest(noise, once(2000), True)[0] == pytest.approx(0.5, abs=0.02)


def test_texts_with_fewer_raters_count_where_they_have_one():
    rated = drawn(raters=4)
    rated.ratings[:200, 3] = np.nan
    found = of_singles(rated)
    assert 0.5 < found["auc_left_out_raters"].low < found["auc_left_out_raters"].value < 1
    assert found["auc"].prompts == 400


def test_intervals_cover():
    """95% intervals of ρ hold the value of a large sample about as often as they say."""
    many = drawn(n=20000, raters=2, seed=99)
    truth = stats.spearmanr(many.scores, many.means).statistic
    hits = 0
    for seed in range(12):
        few = drawn(n=60, raters=2, seed=seed)
        measure = {"rho": partial(rank_correlation, few.scores, few.means)}
        found = resampled(measure, 60, 0.95, seed)["rho"]
        assert found.value == pytest.approx(stats.spearmanr(few.scores, few.means).statistic)
        hits += found.low <= truth <= found.high
    assert hits >= 9  # of 12; P(fewer | 95%) < .003


def test_what_has_no_verdict_is_left_out():
    rated = drawn(n=50)
    rated.scores[:5] = np.nan
    assert of_singles(rated)["auc"].prompts == 45


def test_agreement_by_hand():
    judged, humans = np.array([0.9, 0.2, 0.5, 0.7, 0.7]), np.array([0.8, 0.6, 0.9, 0.5, 0.4])
    np.testing.assert_array_equal(right(judged, humans), [1, 0, 0.5, np.nan, 0])
    np.testing.assert_allclose(with_a_rater(judged, humans), [0.8, 0.4, 0.5, 0.5, 0.4])


def test_two_raters_by_hand():
    """Three persons: two prefer the first; the third prefers the second, and so disagrees with the other two."""
    sums, counts = two_raters([(np.array([3.0, 2.0, 0.0]), np.array([1.0, 1.0, 2.0]))])
    # Person 1 against the mean of 2 and 3: (2 + 0)/2 − (1 + 2)/2 = −½ where he says +. Person 2: (3 + 0 − 1 − 2)/2 = 0, no
    # preference of the others. Person 3: (3 + 2 − 1 − 1)/2 = 1½ where he says −.
    assert (sums[0], counts[0]) == (0.0, 2)
    sums, counts = two_raters([(np.array([3.0, 3.0]), np.array([1.0, 1.0])), (np.array([1.0]), np.array([0.0]))])
    assert sums.tolist() == [2, 0]
    assert counts.tolist() == [2, 0]
