"""The difference of two arms over seeds and prompts, both as samples: what it would be with other seeds *and* other prompts.

Every seed of both arms answers the same prompts, so seeds and prompts are crossed: d_sp = δ + a_s + b_p + e_sp, where b_p, how much
more one arm gains on prompt p than the other, moves the difference of all seeds alike. The spread between seeds cannot show it, and
an interval over seeds holds for these prompts alone. Here its square is added:

    half² = (t_{S−1} · s/√S)² + t²_{P−1} · c

The first term is the interval over seeds. c is what two seeds' differences have in common because they share prompts: the mean,
over pairs of seeds, of the covariance of their differences over prompts, at least 0. In a full table of S × P it is the estimate of
var(b)/P from the mean squares of a two-way layout, and it is 0 where seeds have prompts of their own, whose spread the first term
already has. Each term keeps its own t, as in Howe 1974, "Approximate confidence limits on the mean of X + Y", JASA 69:789;
experiments/statistics compares this with its rivals.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from prefopt.evaluation.intervals import Observations
from prefopt.runs.records import RunRecord
from prefopt.study.comparison.statistics import Difference, rigid


@dataclass(frozen=True)
class Crossed:
    """Arm − baseline over seeds and prompts; around the same value as the interval over seeds, and never narrower.

    Attributes:
        low: lower end of its own interval.
        high: upper end.
        both: the interval that holds together with those of the other comparisons of the family.
        prompts: on which some seed of both arms was measured.
        of_prompts: the share of the squared standard error that comes from the prompts, 0 to 1. Near 1, more prompts help and more
            seeds do not.
    """

    low: float
    high: float
    both: tuple[float, float]
    prompts: int
    of_prompts: float


def crossed(
    runs: Mapping[int, RunRecord],
    baselines: Mapping[int, RunRecord],
    metric: str,
    difference: Difference,
    confidence: float,
    level: float,
) -> Crossed | None:
    """The interval over seeds and prompts of a difference between two arms.

    Args:
        runs: of the arm, by seed.
        baselines: of the other arm.
        metric: as trained, not at matched KL.
        difference: over seeds, paired or not.
        confidence: of its own interval.
        level: of the simultaneous one.

    Returns:
        None where there is no interval over seeds, or where a run keeps no observations of the metric by prompt.
    """
    if not difference.mean.seeds > 1 or not math.isfinite(difference.low) or rigid(difference.mean):
        return None
    paired = len(difference.values) > 0
    sides = [{s: by_prompt(run, metric) for s, run in side.items() if run.after} for side in (runs, baselines)]
    if paired:
        sides = [{s: side.get(s, {}) for s in difference.seeds} for side in sides]
    prompts = sorted({prompt for side in sides for of_run in side.values() for prompt in of_run})
    if any(len(of_run) < 2 for side in sides for of_run in side.values()):
        return None
    one, other = (np.array([[of.get(p, math.nan) for p in prompts] for of in side.values()]) for side in sides)
    if paired:
        differences = one - other
        if (np.isfinite(differences).sum(-1) < 2).any():
            return None
        variance, known = float(common_variance(differences)), np.isfinite(differences).any(0)
    else:
        variance = float(common_variance(one) + common_variance(other) - 2 * common_covariance(one, other))
        known = np.isfinite(one).any(0) & np.isfinite(other).any(0)
    return _widened(difference, max(variance, 0.0), int(known.sum()), confidence, level)


def _widened(difference: Difference, variance: float, prompts: int, confidence: float, level: float) -> Crossed:
    value = difference.mean.value
    own = widened((difference.mean.high - difference.mean.low) / 2, variance, prompts, confidence)
    both = widened((difference.high - difference.low) / 2, variance, prompts, level)
    of_seeds = ((difference.mean.high - difference.mean.low) / 2) ** 2
    critical = stats.t.ppf((1 + confidence) / 2, difference.mean.seeds - 1) ** 2
    share = variance / (variance + of_seeds / critical)
    return Crossed(value - own, value + own, (value - both, value + both), prompts, float(share))


def widened(half: float, variance: float, prompts: int, confidence: float) -> float:
    """[...] half-widths over seeds and prompts, of those over seeds [...] and the prompts' variances [...]."""
    return np.sqrt(half**2 + stats.t.ppf((1 + confidence) / 2, prompts - 1) ** 2 * np.maximum(variance, 0))


def common_variance(values: np.ndarray) -> np.ndarray:
    """[...] of [..., seeds, prompts]: the mean, over pairs of seeds, of the covariance of their means over prompts.

    NaN is a prompt that a seed was not measured on. It is unbiased, so it may be below 0.
    """
    errors = _errors(values)
    seeds = values.shape[-2]
    return (errors.sum(-2) ** 2 - (errors**2).sum(-2)).sum(-1) / (seeds * (seeds - 1))


def common_covariance(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """[...] of [..., seeds, prompts] and [..., others, prompts]: the same, over pairs of a seed of each."""
    return (_errors(one).mean(-2) * _errors(other).mean(-2)).sum(-1)


def _errors(values: np.ndarray) -> np.ndarray:
    """What each prompt adds to the error of its seed's mean, so that covariances of means are sums of products."""
    n = np.isfinite(values).sum(-1, keepdims=True)
    return np.nan_to_num((values - np.nanmean(values, -1, keepdims=True)) / np.sqrt(n * (n - 1)))


def by_prompt(run: RunRecord, metric: str) -> dict[str, float]:
    """Prompt → what it says of the metric; empty where the run keeps none.

    For a ratio Σv/Σw, such as a mean over tokens, it is the ratio with the prompt's pull on it, (v − rw)/w̄: their mean is r, and
    their spread that of r to first order (the delta method).
    """
    observed: Observations | None = run.evaluation.observations.get(metric) if run.evaluation else None
    if observed is None or not len(observed.values):
        return {}
    prompts, values, weights = observed.by_group()
    ratio = values.sum() / weights.sum()
    return dict(zip(prompts, ratio + (values - ratio * weights) / weights.mean(), strict=True))


def prompts_measured(runs: Sequence[RunRecord], *metrics: str) -> tuple[int, int] | None:
    """The fewest and the most prompts that one of these runs was measured on by one of these metrics: a split of the data by a
    seed of its own may leave one seed more than another. None where no run keeps its observations of them.
    """
    kept = [run.evaluation.observations.get(metric) for run in runs if run.evaluation for metric in metrics]
    numbers = [len(set(observed.groups)) for observed in kept if observed is not None]
    return (min(numbers), max(numbers)) if numbers else None
