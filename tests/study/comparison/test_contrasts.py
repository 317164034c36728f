"""Comparisons with any arm, with the best, and of all pairs: their families, and who may be the best."""

import numpy as np
import pytest
from _folders import study
from scipy import stats

from prefopt import PrefoptError
from prefopt.study.comparison.best import to_the_best, unbeaten
from prefopt.study.comparison.compare import compare
from prefopt.study.comparison.contrasts import Contrast, all_pairs, claimed
from prefopt.study.comparison.statistics import differences

ARMS = {"a": [0.0, 0.1, 0.2, 0.1], "b": [1.0, 1.12, 1.21, 1.09], "c": [1.05, 1.0, 1.3, 1.2], "d": [0.5, 0.62, 0.7, 0.6]}


def test_all_pairs_are_one_family(tmp_path):
    found = compare([study(tmp_path, ARMS)], against="all")
    assert [(pair.arm, pair.other) for pair in found.primary.pairs] == all_pairs("abcd")
    assert found.baseline == "a" and found.primary.rows[1].difference == found.primary.pairs[0].difference
    theirs = [stats.ttest_rel(ARMS[one], ARMS[other]) for one, other in all_pairs("abcd")]
    for pair, test in zip(found.primary.pairs, theirs, strict=True):
        interval = test.confidence_interval(1 - 0.05 / 6)
        assert (pair.difference.low, pair.difference.high) == pytest.approx((interval.low, interval.high))
    smallest = min(pair.difference.holm for pair in found.primary.pairs)
    assert smallest == pytest.approx(6 * min(test.pvalue for test in theirs))
    assert "Of all pairs, on gold: b is higher than a (+1.01 [" in found.verdict
    assert "no difference is shown between c and b" in found.verdict
    assert "hold together for all 6 pairs" in found.verdict


def test_against_the_best_each_arm_has_its_interval_to_the_best_of_the_others(tmp_path):
    """One-sided t of 3 at 1 − .05/3 for each pair; a is worse than c by at least nothing and at most the least end to b or c."""
    found = compare([study(tmp_path, ARMS)], against="best")
    assert found.arms == ("c", "a", "b", "d")  # c has the highest mean
    assert [row.claim for row in found.primary.rows] == ["baseline", "worse", "undecided", "worse"]
    to = {other: stats.ttest_rel(ARMS["a"], ARMS[other]).confidence_interval(1 - 2 * 0.05 / 3).low for other in "bc"}
    a = found.primary.rows[1].difference
    assert (a.low, a.high) == (pytest.approx(min(to.values())), 0)
    assert found.primary.rows[2].difference.high > 0
    assert "On gold: c has the best mean; b may be the best as well; not the best: a (−1.04 [" in found.verdict
    low = compare([study(tmp_path / "low", ARMS)], against="best", better="lower")
    assert (low.baseline, low.primary.rows[1].claim) == ("a", "worse") and low.primary.rows[1].difference.low == 0
    assert "a is the best; not the best: b" in low.verdict


def test_an_arm_that_lost_seeds_is_not_the_best_arm(tmp_path):
    assert compare([study(tmp_path, ARMS | {"c": [1.05, None, 1.3, 1.2]})], against="best").baseline == "b"
    assert compare([study(tmp_path / "no", {"a": [None] * 3, "b": [0.0, 0.1, 0.2]})], against="best").baseline == "b"


def test_any_arm_may_be_the_one_to_compare_with(tmp_path):
    made = study(tmp_path, ARMS)
    found = compare([made], against="d")
    assert (found.baseline, found.against) == ("d", "baseline")
    assert found.primary.rows == compare([made], baseline="d").primary.rows
    with pytest.raises(PrefoptError, match=r"against 'd' and baseline 'a': both name an arm"):
        compare([made], against="d", baseline="a")
    with pytest.raises(PrefoptError, match=r"'bset' is not an arm, best or all\. Did you mean 'best'"):
        compare([made], against="bset")


def test_at_matched_kl_each_pair_has_a_kl_of_its_own(tmp_path):
    made = study(tmp_path, {"a": ARMS["a"], "b": ARMS["b"]}, kl=4.0)
    study(tmp_path, {"c": ARMS["c"]}, kl=1.0)
    found = compare([made], metric="gold_at_kl", against="all")
    assert {(pair.arm, pair.other): pair.kl for pair in found.primary.pairs} == {
        ("b", "a"): 4,
        ("c", "a"): 1,
        ("c", "b"): 1,
    }


@pytest.mark.parametrize("means", [(0, 0, 0, 0, 1), (0, 0, 0, 1, 1), (0, 0, 0, 0, 0), (0, 0.5, 1, 1.5, 2)])
def test_the_best_is_among_those_that_nothing_beats(means):
    """Five arms on four seeds: in at most 5% (and noise) is the best left out, or does some interval to the best miss."""
    draw, arms, repeats = np.random.default_rng(0), list("abcde"), 400
    pairs, left_out, missed = all_pairs(arms), 0, 0
    for _ in range(repeats):
        runs = {arm: dict(enumerate(mean + 0.7 * draw.normal(size=4))) for arm, mean in zip(arms, means, strict=True)}
        sides = [(runs[one], runs[other]) for one, other in pairs]
        family = zip(pairs, sides, differences(sides, level=1 - 2 * 0.05 / 4), strict=True)
        found = [Contrast(*pair, *of, d, claimed(d, *of, "higher")) for pair, of, d in family]
        left_out += "e" not in unbeaten(arms, found)
        intervals = to_the_best(arms, found, "higher")
        truth = {arm: means[n] - max(means[:n] + means[n + 1 :]) for n, arm in enumerate(arms)}
        missed += any(not intervals[arm][0] <= truth[arm] <= intervals[arm][1] for arm in arms)
    assert max(left_out, missed) <= repeats * 0.05 + 5
    assert (
        left_out > 0 or len(set(means[-2:])) > 1
    )  # of equals one is left out now and then, which wrongs nobody by more than 0
