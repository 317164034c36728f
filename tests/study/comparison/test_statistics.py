"""Inference over seeds: by hand, against scipy, and by how often it is right."""

import math

import numpy as np
import pytest
from scipy import stats

from prefopt.study.comparison.statistics import (
    at_kl,
    bonferroni,
    bootstrap_t,
    differences,
    half_widths,
    holm,
    interquartile_mean,
    paired_p,
    seeds_needed,
    student,
)

REPEATS = 10_000


def by_seed(values) -> dict[int, float]:
    return dict(enumerate(values))


def test_student_by_hand():
    """1, 2, 3: mean 2, s = 1, t_{2, .975} = 4.3027 from a table, so ± 4.3027 / √3 = 2.4842."""
    mean = student([1, 2, 3])
    assert (mean.value, mean.sd, mean.seeds) == (2, 1, 3)
    assert (mean.low, mean.high) == pytest.approx((2 - 2.4841, 2 + 2.4841), abs=2e-4)


def test_student_and_paired_p_are_scipys():
    draw = np.random.default_rng(0)
    one, other = draw.normal(size=(2, 7))
    theirs = stats.ttest_rel(one, other)
    assert paired_p(one - other) == pytest.approx(theirs.pvalue, rel=1e-10)
    mean, interval = student(one - other, 0.9), theirs.confidence_interval(0.9)
    assert (mean.low, mean.high) == pytest.approx((interval.low, interval.high))


@pytest.mark.parametrize("values", [[], [1.0]])
def test_fewer_than_two_seeds_have_no_interval(values):
    mean = student(values)
    assert mean.seeds == len(values)
    assert math.isnan(mean.low)
    assert paired_p(values) == 1


def test_equal_differences_prove_nothing():
    assert paired_p([0.1 + 0.2, 0.3, 0.3]) == 1  # equal to rounding


def test_holm_by_hand():
    """Of .01, .04, .03: 3 × .01, then 2 × .03, then 1 × .04 raised to what came before."""
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.9, 0.8]) == [1, 1]
    assert holm([]) == []


def test_the_family_is_one():
    """Two arms on three seeds, differences 1, 2, 3 and −1, 0, 1: intervals at 97.5%, t_{2, .9875} = 6.2053."""
    base = by_seed([10, 20, 30])
    up, level = differences([(by_seed([11, 22, 33]), base), (by_seed([9, 20, 31]), base)])
    assert up.values == (1, 2, 3)
    assert (up.low, up.high) == pytest.approx((2 - 3.5826, 2 + 3.5826), abs=2e-4)
    assert (up.mean.low, up.mean.high) == pytest.approx((-0.4841, 4.4841), abs=2e-4)
    assert up.holm == pytest.approx(2 * stats.ttest_rel([11, 22, 33], [10, 20, 30]).pvalue)
    assert level.holm == 1
    assert up.correlation == pytest.approx(1)


def test_an_arm_without_seeds_still_counts_in_the_family():
    base, arm = by_seed([0.0, 0.1, 0.3]), by_seed([1.0, 1.3, 1.2])
    (alone,), (beside, empty) = differences([(arm, base)]), differences([(arm, base), ({}, base)])
    assert beside.low < alone.low
    assert beside.holm == pytest.approx(2 * alone.p)
    assert empty.seeds == ()
    assert (empty.p, empty.needed) == (1, None)
    assert [beside.needed, *differences([({0: 1.0, 1: 2.0}, base)])][1].needed is None  # of two seeds: a guess


def test_only_common_seeds_are_paired():
    (one,) = differences([({0: 1.0, 2: 5.0, 3: 7.0}, {2: 1.0, 3: 2.0, 4: 0.0})])
    assert one.seeds == (2, 3)
    assert one.values == (4, 5)


def test_unpaired_is_welch():
    one, other = [1.0, 2.5, 3.0, 2.2], [0.1, 0.4, 0.2]
    (found,) = differences([(by_seed(one), by_seed(other))], paired=False)
    theirs = stats.ttest_ind(one, other, equal_var=False)
    assert found.p == pytest.approx(theirs.pvalue)
    assert (found.low, found.high) == pytest.approx(tuple(theirs.confidence_interval()))


def test_seeds_needed_are_said_with_how_little_is_known_of_the_spread():
    """Five differences with mean 1 and s = 1: the spread is within 0.717 and 1.939 (χ² of 4: 7.779 and 1.064), so 5 to 32 seeds."""
    arm = by_seed(1 + np.array([-1.2649, -0.6325, 0, 0.6325, 1.2649]))
    (found,) = differences([(arm, by_seed([0.0] * 5))])
    assert found.mean.sd == pytest.approx(1, abs=1e-3)
    assert found.needed == (seeds_needed(0.717, 1.0), seeds_needed(1.939, 1.0)) == (7, 32)
    assert found.level == 0.95


def test_seeds_needed_have_the_power():
    """d = 0.5 at 5% and 80% needs 34 pairs (Cohen 1988, and every calculator since); one fewer does not do."""
    assert seeds_needed(1.0, 0.5) == 34
    assert seeds_needed(1.0, 1.0) == 10
    draw = np.random.default_rng(1)
    for n, enough in ((34, True), (31, False)):
        d = draw.normal(0.5, 1, (REPEATS, n))
        power = (abs(d.mean(-1)) > half_widths(d, 0.95)).mean()
        assert (power > 0.79) == enough
    assert seeds_needed(1.0, 0.0) is None
    assert seeds_needed(math.nan, 1.0) is None
    assert seeds_needed(1.0, 0.5, bonferroni(0.95, 4)) > 34


@pytest.mark.parametrize("n", [3, 5, 8, 10])
def test_coverage_of_normal_seeds(n):
    values = np.random.default_rng(n).normal(0.3, 2.0, (REPEATS, n))
    assert 0.94 <= (abs(values.mean(-1) - 0.3) <= half_widths(values, 0.95)).mean() <= 0.96


@pytest.mark.parametrize("n", [3, 5, 8, 10])
def test_family_wise_error_of_five_equal_arms(n):
    """Four comparisons to one baseline; at most 5%, within three standard errors of the simulation."""
    runs = np.random.default_rng(n).normal(size=(REPEATS, 5, n))
    d = runs[:, 1:] - runs[:, :1]
    wrong = (abs(d.mean(-1)) > half_widths(d, bonferroni(0.95, 4))).any(-1).mean()
    assert 0.02 < wrong <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / REPEATS)


def test_the_simulated_intervals_are_those_of_differences():
    """The vectorised simulation above speaks for what a comparison does."""
    base, *arms = np.random.default_rng(3).normal(size=(5, 4))
    found = differences([(by_seed(arm), by_seed(base)) for arm in arms])
    d = np.stack(arms) - base
    half = half_widths(d, bonferroni(0.95, 4))
    assert [one.low for one in found] == pytest.approx(d.mean(-1) - half)
    assert [one.high for one in found] == pytest.approx(d.mean(-1) + half)


def test_descriptions_begin_at_eight_seeds():
    assert math.isnan(interquartile_mean(range(7)))
    assert interquartile_mean([100, 3, 2, 4, 5, 1, -50, 0]) == (1 + 2 + 3 + 4) / 4  # −50, 0 and 5, 100 are cut
    assert all(math.isnan(end) for end in bootstrap_t(range(7)))


def test_bootstrap_t_follows_skew_and_its_seed():
    values = np.random.default_rng(2).exponential(size=30)
    low, high = bootstrap_t(values, seed=4)
    assert (low, high) == bootstrap_t(values, seed=4) != bootstrap_t(values, seed=5)
    assert high - values.mean() > values.mean() - low > 0  # the long tail is above


def test_matched_kl_is_linear_in_its_root():
    path = [(0.0, 0.0), (4.0, 2.0), (16.0, 3.0)]
    assert at_kl(path, 1.0) == 1.0  # √1 is half of √4
    assert at_kl(path, 9.0) == 2.5
    assert at_kl(path, 16.0) == 3.0
    assert math.isnan(at_kl(path, 16.1))  # nothing is extrapolated
    assert math.isnan(at_kl(path, math.nan))
    assert math.isnan(at_kl([], 1.0))


def test_matched_kl_is_read_at_the_first_crossing():
    assert at_kl([(0.0, 0.0), (4.0, 2.0), (0.0, 10.0), (9.0, -3.0)], 1.0) == 1.0
    assert at_kl([(-0.1, 5.0), (4.0, 7.0)], 1.0) == 6.0  # an estimate below 0 is 0
