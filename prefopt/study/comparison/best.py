"""Comparisons with the best arm, which nobody knows before the runs: which arms may be it, and how far the others are behind.

What can go wrong is that the truly best arm is called worse than another. There are k − 1 others, each needs a one-sided interval,
and by Bonferroni each of these may miss in (1 − confidence)/(k − 1). Which arm is best need not be known for that, so one level
serves all pairs, and it is much milder than that of k(k − 1)/2 two-sided comparisons.

Source: multiple comparisons with the best: Edwards & Hsu 1983, JASA 78:965; Hsu 1996, "Multiple Comparisons", ch. 4. Theirs are for
independent arms of one variance; here each pair has its own t, and Bonferroni.
"""

import math
from collections.abc import Sequence
from statistics import fmean

from prefopt.study.comparison.contrasts import (
    AT_KL,
    Better,
    Contrast,
    Runs,
    all_pairs,
    by_seed,
    contrasts,
    known,
    matched_kl,
)

Interval = tuple[float, float]


def pairs_for_best(runs: Runs, metric: str, better: Better, confidence: float, paired: bool) -> list[Contrast]:
    """All pairs, with simultaneous intervals from which the best arm is `unbeaten` with this confidence."""
    level = max(1 - 2 * (1 - confidence) / max(len(runs) - 1, 1), 0.0)
    return contrasts(runs, all_pairs(list(runs)), metric, better, confidence, paired, level)


def best_arm(runs: Runs, metric: str, better: Better) -> str:
    """The arm with the best mean, of those that lost the fewest seeds: without its bad seeds an arm looks better than it is."""
    kl = matched_kl(list(runs.values())) if metric.endswith(AT_KL) else None
    sign = 1 if better == "higher" else -1

    def rank(arm: str) -> tuple[bool, int, float]:
        values = [
            value for seed, value in by_seed(runs, arm, metric.removesuffix(AT_KL), kl).items() if seed in runs[arm]
        ]
        numbers = [value for value in values if math.isfinite(value)]
        return bool(numbers), len(numbers) - len(values), sign * fmean(numbers) if numbers else 0.0

    return max(runs, key=rank)


def unbeaten(arms: Sequence[str], pairs: Sequence[Contrast]) -> list[str]:
    """The arms that no other is shown to be better than, in their order; those without any number are left out.

    Of the pairs of `pairs_for_best`, the best arm is among these with the confidence that they are for.
    """
    beaten = {pair.arm for pair in pairs if pair.claim == "worse"} | {
        pair.other for pair in pairs if pair.claim == "better"
    }
    measured = {pair.arm for pair in pairs if known(pair.values)} | {pair.other for pair in pairs if known(pair.others)}
    return [arm for arm in arms if arm in measured - beaten]


def to_the_best(
    arms: Sequence[str], pairs: Sequence[Contrast], better: Better, other_prompts: bool = False
) -> dict[str, Interval]:
    """Of each arm, the interval of arm − the best of the others; all hold together with the confidence of the pairs.

    With "higher", the upper end is the least of those to the others, and 0 where some other is shown to be better; the lower end
    is the least of those to the arms that may be the best, and at most 0. Infinite where a pair has no interval.

    Args:
        arms: their names.
        pairs: of `pairs_for_best`.
        better: which values are better.
        other_prompts: of the intervals over seeds and prompts.
    """
    ends: dict[tuple[str, str], Interval] = {}
    for pair in pairs:
        low, high = _ends(pair, other_prompts)
        low, high = (low, high) if better == "higher" else (-high, -low)
        ends[pair.arm, pair.other], ends[pair.other, pair.arm] = (low, high), (-high, -low)
    found = {}
    rivals = [arm for arm in arms if all(ends[arm, other][1] >= 0 for other in arms if other != arm)]
    for arm in arms:
        high = max(0.0, min(ends[arm, other][1] for other in arms if other != arm))
        low = min([0.0, *(ends[arm, rival][0] for rival in rivals if rival != arm)])
        found[arm] = (low, high) if better == "higher" else (-high, -low)
    return found


def _ends(pair: Contrast, other_prompts: bool) -> Interval:
    """Of a pair about which something can be said: neither was favoured by lost seeds, and seeds varied."""
    if pair.claim not in ("better", "worse", "undecided") or (other_prompts and pair.crossed is None):
        return -math.inf, math.inf
    d = pair.difference
    return pair.crossed.both if other_prompts and pair.crossed else (d.low, d.high)
