"""Estimates with intervals: those that resample prompts, where all that is said about one stays together, and those over seeds."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats

from prefopt.types import Estimate

RESAMPLES = 2000


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


def estimate(observed: Observations, confidence: float = 0.95, seed: int = 0) -> Estimate:
    """The mean, with a percentile bootstrap interval over groups (Efron & Tibshirani 1993, ch. 13)."""
    _, values, weights = observed.by_group()
    return bootstrap((values, weights), lambda v, w, axis=-1: v.sum(axis) / w.sum(axis), confidence, seed)


def common(one: Observations, other: Observations) -> tuple[Observations, Observations]:
    """Both on the groups that both have."""
    shared = set(one.groups) & set(other.groups)
    return _only(one, shared), _only(other, shared)


def _only(observed: Observations, groups: set[str]) -> Observations:
    here = np.array([group in groups for group in observed.groups], dtype=bool)
    return Observations(observed.values[here], observed.weights[here], [g for g in observed.groups if g in groups])


def change(before: Observations, after: Observations, confidence: float = 0.95, seed: int = 0) -> Estimate:
    """after − before on the same groups, paired: a prompt is resampled with both its observations.

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
    )


def over_seeds(values: Sequence[float], confidence: float = 0.95) -> tuple[float, float]:
    """Mean and half-width of Student's interval over runs that differ in their seed; NaN for the half-width of one run."""
    n = len(values)
    if n < 2:
        return float(np.mean(values)), math.nan
    error = float(np.std(values, ddof=1)) / math.sqrt(n)
    return float(np.mean(values)), float(stats.t.ppf((1 + confidence) / 2, n - 1)) * error


def bootstrap(
    columns: Sequence[np.ndarray], statistic: Callable[..., Any], confidence: float = 0.95, seed: int = 0
) -> Estimate:
    """A statistic of G groups, with a percentile bootstrap interval over them; NaN ends for fewer than two.

    Args:
        columns: [G] each, resampled together.
        statistic: of the columns, along `axis`.
        confidence: of the interval.
        seed: of the resampling.
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
    return Estimate(value, float(interval.low), float(interval.high), groups)
