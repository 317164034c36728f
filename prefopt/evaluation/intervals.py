"""Estimates with intervals: those that resample prompts, where all that is said about one stays together, and those over seeds."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats

from prefopt.types import Estimate

RESAMPLES = 2000

Bounds = tuple[float, float]
"""Between which a quantity lies for every prompt, whatever the data."""

HALVES = 200
"""Random halves of the prompts on which a number of all samples is computed again."""


@dataclass(frozen=True)
class Observations:
    """A quantity on held-out data; its estimate is Σ values / Σ weights.

    Attributes:
        values: [n].
        weights: [n]; 1 for a mean over rows, the number of tokens for a mean over tokens.
        groups: n names; observations of one group are resampled together.
    """

    values: np.ndarray
    weights: np.ndarray
    groups: Sequence[str]

    def by_group(self) -> tuple[list[str], np.ndarray, np.ndarray]:
        """Names [g], summed values [g] and weights [g], of the groups, in the order of their names."""
        names, where = np.unique(np.asarray(self.groups), return_inverse=True)
        sums = np.zeros((2, len(names)))
        np.add.at(sums.T, where, np.stack([self.values, self.weights], axis=1))
        return names.tolist(), sums[0], sums[1]


def estimate(observed: Observations, confidence: float = 0.95, seed: int = 0, bounds: Bounds | None = None) -> Estimate:
    """The mean, with a percentile bootstrap interval over groups (Efron & Tibshirani 1993, ch. 13); see `bootstrap`."""
    _, values, weights = observed.by_group()
    return bootstrap((values, weights), lambda v, w, axis=-1: v.sum(axis) / w.sum(axis), confidence, seed, bounds)


def common(one: Observations, other: Observations) -> tuple[Observations, Observations]:
    """Both on the groups that both have."""
    shared = set(one.groups) & set(other.groups)
    return _only(one, shared), _only(other, shared)


def _only(observed: Observations, groups: set[str]) -> Observations:
    here = np.array([group in groups for group in observed.groups], dtype=bool)
    return Observations(observed.values[here], observed.weights[here], [g for g in observed.groups if g in groups])


def change(
    before: Observations,
    after: Observations,
    confidence: float = 0.95,
    seed: int = 0,
    bounds: Bounds | None = None,
) -> Estimate:
    """after − before on the same groups, paired: a prompt is resampled with both its observations; `bounds` are those of each.

    Raises:
        ValueError: the two were not measured on the same groups.
    """
    names, values, weights = before.by_group()
    others, new_values, new_weights = after.by_group()
    if names != others:
        raise ValueError("the two evaluations saw different prompts; they cannot be paired")
    return bootstrap(
        (values, weights, new_values, new_weights),
        lambda v, w, nv, nw, axis=-1: nv.sum(axis) / nw.sum(axis) - v.sum(axis) / w.sum(axis),
        confidence,
        seed,
        None if bounds is None else (bounds[0] - bounds[1], bounds[1] - bounds[0]),
    )


@dataclass(frozen=True)
class Halved:
    """A number of all samples together, which is no mean over prompts, and the same number on random halves of the prompts.

    A bootstrap draws prompts twice, and what counts repetitions (distinct n-grams, self-BLEU) then measures the drawing: its
    intervals for distinct_2 of 30 to 384 prompts never held the true value. A half has no prompt twice. The spread of a smooth
    statistic over halves is that over new samples of the whole size (delete-d jackknife, d = n/2: Shao & Wu, Annals of Statistics
    17 (1989), 1176–1197), while the level of such counts depends on the size, so the spread alone is used.

    Attributes:
        value: of all samples.
        halves: [R], on each half; the same halves for every evaluation of the same groups and seed.
        groups: names of what was halved, sorted.
    """

    value: float
    halves: np.ndarray
    groups: Sequence[str]

    def minus(self, other: "Halved") -> "Halved":
        """The difference, paired: both on the same halves.

        Raises:
            ValueError: the two are not of the same groups.
        """
        if list(self.groups) != list(other.groups):
            raise ValueError("the two evaluations saw different prompts; they cannot be paired")
        return Halved(self.value - other.value, self.halves - other.halves, self.groups)

    def estimate(self, confidence: float = 0.95) -> Estimate:
        """The value, and an interval of the width of the spread over halves."""
        groups = len(self.groups)
        if groups < 2 or not np.isfinite([self.value, *self.halves]).all():
            return Estimate(self.value, math.nan, math.nan, groups)
        half = groups // 2
        away = (self.halves - self.halves.mean()) * math.sqrt(half / (groups - half))
        low, high = np.quantile(away, [(1 - confidence) / 2, (1 + confidence) / 2])
        if low == high:  # all halves say the same, which tells nothing of others
            return Estimate(self.value, math.nan, math.nan, groups)
        return Estimate(self.value, self.value - float(high), self.value - float(low), groups)


def halved(statistic: Callable[[np.ndarray], float], groups: Sequence[str], seed: int) -> Halved:
    """A statistic of all rows, and of the rows of `HALVES` random halves of the groups.

    Args:
        statistic: of the rows with these numbers, in order.
        groups: of each row.
        seed: of the halves.
    """
    names, where = np.unique(np.asarray(groups), return_inverse=True)
    draw = np.random.default_rng(seed)
    halves = [draw.permutation(len(names))[: len(names) // 2] for _ in range(HALVES if len(names) > 1 else 0)]
    values = [statistic(np.flatnonzero(np.isin(where, half))) for half in halves]
    return Halved(statistic(np.arange(len(groups))), np.array(values, dtype=float), names.tolist())


def over_seeds(values: Sequence[float], confidence: float = 0.95) -> tuple[float, float]:
    """Mean and half-width of Student's interval over runs that differ in their seed; NaN for the half-width of one run."""
    n = len(values)
    if n < 2:
        return float(np.mean(values)), math.nan
    error = float(np.std(values, ddof=1)) / math.sqrt(n)
    return float(np.mean(values)), float(stats.t.ppf((1 + confidence) / 2, n - 1)) * error


def bootstrap(
    columns: Sequence[np.ndarray],
    statistic: Callable[..., Any],
    confidence: float = 0.95,
    seed: int = 0,
    bounds: Bounds | None = None,
) -> Estimate:
    """A statistic of G groups, with a percentile bootstrap interval over them; NaN ends for fewer than two.

    Where all groups say the same, every resample does, and the interval would have no width: 20 of 20 right is no proof that the
    21st will be. With `bounds` it is then `of_alike`'s, otherwise there is none.

    Args:
        columns: [G] each, resampled together.
        statistic: of the columns, along `axis`.
        confidence: of the interval.
        seed: of the resampling.
        bounds: of the statistic of any groups.
    """
    groups = len(columns[0])
    value = float(statistic(*columns)) if groups else float("nan")
    if groups < 2:
        return Estimate(value, float("nan"), float("nan"), groups)
    interval = stats.bootstrap(
        columns,
        statistic,
        paired=True,
        vectorized=True,
        n_resamples=RESAMPLES,
        confidence_level=confidence,
        method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    low, high = float(interval.low), float(interval.high)
    if math.isclose(low, high, rel_tol=1e-9, abs_tol=1e-12):
        low, high = (math.nan, math.nan) if bounds is None else of_alike(value, groups, bounds, confidence)
    return Estimate(value, low, high, groups)


def of_alike(value: float, groups: int, bounds: Bounds, confidence: float = 0.95) -> tuple[float, float]:
    """The interval of the mean of a bounded quantity that was the same in every one of n groups.

    With confidence 1 − α at least a share p = (α/2)^(1/n) of all groups is so, and the others are at worst at a bound. At a bound
    it is the exact binomial interval of n successes of n.

    Source: Clopper & Pearson, Biometrika 26 (1934), https://doi.org/10.1093/biomet/26.4.404.
    """
    share = ((1 - confidence) / 2) ** (1 / groups)
    low, high = (share * value + (1 - share) * bound for bound in bounds)
    return low, high
