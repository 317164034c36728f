"""Inference over seeds: Student's t, Holm and Bonferroni, the number of seeds needed; and descriptive statistics."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise

import numpy as np
from scipy import stats

DESCRIBED_FROM = 8
"""The fewest seeds for an interquartile mean and a bootstrap-t interval; below, a quartile is one run or none."""

RESAMPLES = 2000


@dataclass(frozen=True)
class Mean:
    """A mean over seeds.

    Attributes:
        value: the mean; NaN of no seeds.
        low: lower end of Student's interval; NaN of fewer than two seeds.
        high: upper end.
        sd: standard deviation between seeds, with n − 1; NaN of fewer than two.
        seeds: how many.
    """

    value: float
    low: float
    high: float
    sd: float
    seeds: int


@dataclass(frozen=True)
class Difference:
    """An arm minus the baseline, paired by seed.

    Attributes:
        seeds: those on which both have a number, in order.
        values: of each, the difference.
        mean: their mean with its own interval, as if it were the only comparison.
        low: lower end of the Bonferroni-t interval, which holds simultaneously with those of the other arms of the family.
        high: upper end of the same.
        p: of the two-sided paired t-test.
        holm: p adjusted by Holm over the family.
        correlation: Pearson's, of the two arms over seeds; what pairing gains. NaN of fewer than three seeds.
        level: the confidence of [low, high] alone.
    """

    seeds: tuple[int, ...]
    values: tuple[float, ...]
    mean: Mean
    low: float
    high: float
    p: float
    holm: float
    correlation: float
    level: float

    @cached_property
    def needed(self) -> tuple[int, int] | None:
        """Seeds at which a difference of the observed size would be found with 80% power at this level, from … to ….

        The two ends are of an 80% interval of the spread between seeds, which a few seeds tell within a factor of several. None of
        fewer than three seeds, of which the ends would be a thousandfold apart, and of a difference of 0.
        """
        if self.mean.seeds < 3:
            return None
        df = self.mean.seeds - 1
        ends = [self.mean.sd * math.sqrt(df / stats.chi2.ppf(q, df)) for q in (0.9, 0.1)]
        few, many = (seeds_needed(sd, self.mean.value, self.level) for sd in ends)
        return (few, many) if few is not None and many is not None else None


def student(values: Sequence[float], confidence: float = 0.95) -> Mean:
    """Mean with Student's interval: x̄ ± t_{n−1, (1+c)/2} s/√n."""
    x = np.asarray(values, dtype=float)
    if len(x) == 0:
        return Mean(math.nan, math.nan, math.nan, math.nan, 0)
    value = float(x.mean())
    if len(x) == 1:
        return Mean(value, math.nan, math.nan, math.nan, 1)
    sd = float(x.std(ddof=1))
    half = float(half_widths(x, confidence))
    return Mean(value, value - half, value + half, sd, len(x))


def half_widths(values: np.ndarray, confidence: float) -> np.ndarray:
    """[...] half-widths of Student's intervals over the last of [..., n]; what `student` uses, for many samples at once."""
    n = values.shape[-1]
    return stats.t.ppf((1 + confidence) / 2, n - 1) * values.std(axis=-1, ddof=1) / math.sqrt(n)


def paired_p(differences: Sequence[float]) -> float:
    """Two-sided p of the paired t-test; 1 of fewer than two seeds.

    It is 1 also where all differences are equal, for then nothing is known of the spread: those runs did not vary. (scipy has 0.)
    """
    mean = student(differences)
    if mean.seeds < 2 or rigid(mean):
        return 1.0
    return float(2 * stats.t.sf(abs(mean.value) / (mean.sd / math.sqrt(mean.seeds)), mean.seeds - 1))


def rigid(mean: Mean) -> bool:
    """Whether the values are the same on every seed, to rounding."""
    return mean.sd <= 1e-9 * abs(mean.value)


def holm(ps: Sequence[float]) -> list[float]:
    """Holm's adjusted p-values: of the i-th smallest, max over j ≤ i of (m − j + 1) p_(j), at most 1.

    Source: Holm 1979, "A simple sequentially rejective multiple test procedure".
    """
    m = len(ps)
    adjusted, largest = [1.0] * m, 0.0
    for rank, index in enumerate(sorted(range(m), key=lambda i: ps[i])):
        largest = max(largest, min(1.0, (m - rank) * ps[index]))
        adjusted[index] = largest
    return adjusted


def bonferroni(confidence: float, comparisons: int) -> float:
    """The confidence of each of m intervals that hold together with `confidence`."""
    return 1 - (1 - confidence) / max(comparisons, 1)


def differences(
    pairs: Sequence[tuple[Mapping[int, float], Mapping[int, float]]],
    confidence: float = 0.95,
    paired: bool = True,
    level: float | None = None,
) -> list[Difference]:
    """Of each arm to the baseline, as one family: every comparison that was planned counts, also one with no seed left.

    Args:
        pairs: for each arm, its number of each seed that has one, and the baseline's.
        confidence: of the single intervals, and of the simultaneous ones together.
        paired: seed by seed; otherwise Welch's t for two independent samples.
        level: of each simultaneous interval; by default Bonferroni's.
    """
    level = bonferroni(confidence, len(pairs)) if level is None else level
    compare = _seed_by_seed if paired else _welch
    results = [compare(arm, baseline, confidence, level) for arm, baseline in pairs]
    return [replace(one, holm=p) for one, p in zip(results, holm([one.p for one in results]), strict=True)]


def _seed_by_seed(
    arm: Mapping[int, float], baseline: Mapping[int, float], confidence: float, level: float
) -> Difference:
    seeds = tuple(sorted(arm.keys() & baseline.keys()))
    values = tuple(arm[s] - baseline[s] for s in seeds)
    both, p = student(values, level), paired_p(values)
    correlation = _correlation([arm[s] for s in seeds], [baseline[s] for s in seeds])
    return Difference(seeds, values, student(values, confidence), both.low, both.high, p, p, correlation, level)


def _welch(arm: Mapping[int, float], baseline: Mapping[int, float], confidence: float, level: float) -> Difference:
    """Independent samples: differences of two draws have the sum of the variances, from which the seeds needed are reckoned."""
    one, other = list(arm.values()), list(baseline.values())
    seeds = tuple(sorted(arm.keys() & baseline.keys()))
    value, nan = float(np.mean(one) - np.mean(other)) if one and other else math.nan, math.nan
    spread = math.sqrt(np.var(one, ddof=1) + np.var(other, ddof=1)) if min(len(one), len(other)) > 1 else nan
    if not spread > 0:
        empty = Mean(value, nan, nan, spread, min(len(one), len(other)))
        return Difference(seeds, (), empty, nan, nan, 1.0, 1.0, nan, level)
    test = stats.ttest_ind(one, other, equal_var=False)
    single, both = test.confidence_interval(confidence), test.confidence_interval(level)
    mean = Mean(value, float(single.low), float(single.high), spread, min(len(one), len(other)))
    return Difference(seeds, (), mean, float(both.low), float(both.high), float(test.pvalue), 1.0, nan, level)


def seeds_needed(sd: float, difference: float, confidence: float = 0.95, power: float = 0.8) -> int | None:
    """The fewest seeds at which a two-sided one-sample t-test finds `difference` with this power; None where it is not known.

    Source: the power of the t-test from the noncentral t distribution, Cohen 1988, ch. 2.
    """
    if not (math.isfinite(sd) and math.isfinite(difference)) or difference == 0:
        return None
    if sd == 0:
        return 2

    def enough(n: int) -> bool:
        critical = stats.t.ppf((1 + confidence) / 2, n - 1)
        shift = abs(difference) / sd * math.sqrt(n)
        return bool(stats.nct.sf(critical, n - 1, shift) >= power)

    low, high = 1, 2
    while not enough(high):
        low, high = high, high * 2
        if high > 1_000_000:
            return None
    while high - low > 1:  # power grows with n, so the first is found by halving
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high


def interquartile_mean(values: Sequence[float]) -> float:
    """The mean of the middle half; NaN below `DESCRIBED_FROM` seeds.

    Source: Agarwal et al., arXiv 2108.13264, there over runs and tasks.
    """
    return float(stats.trim_mean(values, 0.25)) if len(values) >= DESCRIBED_FROM else math.nan


def bootstrap_t(values: Sequence[float], confidence: float = 0.95, seed: int = 0) -> tuple[float, float]:
    """A bootstrap-t interval of the mean; NaN below `DESCRIBED_FROM` seeds. It describes skew; no verdict rests on it.

    Source: Efron & Tibshirani 1993, ch. 12.5.
    """
    if len(values) < DESCRIBED_FROM:
        return math.nan, math.nan
    x = np.asarray(values, dtype=float)
    draws = np.random.default_rng(seed).choice(x, (RESAMPLES, len(x)))
    errors = draws.std(axis=1, ddof=1) / math.sqrt(len(x))
    t = (draws.mean(axis=1) - x.mean())[errors > 0] / errors[errors > 0]
    if len(t) == 0:
        return float(x.mean()), float(x.mean())
    low, high = np.quantile(t, [(1 - confidence) / 2, (1 + confidence) / 2])
    error = float(x.std(ddof=1)) / math.sqrt(len(x))
    return float(x.mean() - high * error), float(x.mean() - low * error)


def at_kl(points: Sequence[tuple[float, float]], kl: float) -> float:
    """The value of a run where its KL first reaches `kl`; NaN where it never does: nothing is extrapolated.

    Between two evaluations the value is taken to be linear in √KL: near the reference a tilt of the policy moves an expectation in
    proportion to √KL, and rewards have been found to follow √KL further out.

    Args:
        points: (KL, value) along training, in the order of the steps; a KL below 0 is one of 0, with noise.
        kl: in nats.

    Source: Gao et al., arXiv 2210.10760, who write gold rewards as functions of √KL.
    """
    goal = math.sqrt(kl)
    path = [(math.sqrt(max(x, 0.0)), y) for x, y in points if math.isfinite(x) and math.isfinite(y)]
    for (x0, y0), (x1, y1) in pairwise(path):
        if min(x0, x1) <= goal <= max(x0, x1):
            return y0 if x0 == x1 else y0 + (y1 - y0) * (goal - x0) / (x1 - x0)
    return math.nan


def _correlation(one: Sequence[float], other: Sequence[float]) -> float:
    if len(one) < 3 or np.ptp(one) == 0 or np.ptp(other) == 0:
        return math.nan
    return float(np.corrcoef(one, other)[0, 1])
