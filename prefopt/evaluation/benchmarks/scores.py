"""A benchmark's score: a weighted sum of what its strata come to, with an interval."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from scipy import stats

from prefopt.evaluation.benchmarks.cases import Case
from prefopt.evaluation.intervals import Observations, estimate
from prefopt.types import Estimate


@dataclass(frozen=True)
class ScoreEstimate(Estimate):
    """A score with its interval.

    Attributes:
        rows: how many it is over; `prompts` of them are resampled apart.
    """

    rows: int = 0


class Stratum(Protocol):
    """A part of a benchmark, whose rows are resampled apart from those of other parts."""

    @property
    def rows(self) -> int:
        """How many it has."""
        ...

    def estimate(self, confidence: float, seed: int) -> Estimate:
        """What it comes to, with an interval over its groups."""
        ...


@dataclass(frozen=True)
class Mean:
    """The mean over the rows of a stratum.

    Where every group is a single 0 or 1 (or all rows agree), the interval is Wilson's, which holds for few groups and at both ends,
    where a bootstrap has no width; otherwise it is a percentile bootstrap over groups.

    Source: Wilson, JASA 22 (1927); Brown, Cai & DasGupta, https://doi.org/10.1214/ss/1009213286.

    Attributes:
        values: [n].
        groups: n names; rows of one prompt are resampled together.
    """

    values: np.ndarray
    groups: Sequence[str]

    @property
    def rows(self) -> int:
        """n."""
        return len(self.values)

    def estimate(self, confidence: float = 0.95, seed: int = 0) -> Estimate:
        """The mean, with its interval."""
        observed = Observations(self.values, np.ones_like(self.values), self.groups)
        names, sums, counts = observed.by_group()
        means = sums / counts
        alike = len({*counts.tolist()}) == 1 or len({*means.tolist()}) == 1
        if not (names and alike and set(means.tolist()) <= {0.0, 1.0}):
            return estimate(observed, confidence, seed, (0.0, 1.0))
        low, high = stats.binomtest(round(means.sum()), len(names)).proportion_ci(confidence, method="wilson")
        return Estimate(float(means.mean()), float(low), float(high), len(names))


@dataclass(frozen=True)
class Score:
    """Σ_s c_s m_s over strata s, whose shares c_s add up to 1.

    The strata are independent, so the interval is put together from theirs: low = m − √Σ(c_s (m_s − l_s))², and high alike. Unlike
    a bootstrap over all rows it takes the benchmark's composition as given, and holds for strata at 0 or 1.

    Source: "MOVER", Zou & Donner, https://doi.org/10.1002/sim.3095; of binomial proportions, Zou, Huang & Zhang, CSDA 53 (2009).

    Attributes:
        strata: each with its share.
    """

    strata: Sequence[tuple[float, Stratum]]

    def estimate(self, confidence: float = 0.95, seed: int = 0) -> ScoreEstimate:
        """The score, with its interval."""
        rows = sum(stratum.rows for _, stratum in self.strata)
        parts = [(share, stratum.estimate(confidence, seed)) for share, stratum in self.strata]
        if len(parts) == 1:  # without a rounding
            return ScoreEstimate(**vars(parts[0][1]), rows=rows)
        value = sum(share * e.value for share, e in parts)
        below, above = (
            math.sqrt(sum((share * difference(e)) ** 2 for share, e in parts))
            for difference in (lambda e: e.value - e.low, lambda e: e.high - e.value)
        )
        return ScoreEstimate(value, value - below, value + above, sum(e.prompts for _, e in parts), rows)

    def observations(self) -> Observations | None:
        """The score as Σ values / Σ weights over rows, to be paired with another model's; None where it is no mean."""
        values: list[np.ndarray] = []
        weights: list[np.ndarray] = []
        groups: list[str] = []
        for share, stratum in self.strata:
            if not isinstance(stratum, Mean):
                return None
            weight = share / len(stratum.values)
            values.append(stratum.values * weight)
            weights.append(np.full(len(stratum.values), weight))
            groups += stratum.groups
        return Observations(np.concatenate(values), np.concatenate(weights), groups)


def by_subset(values: Sequence[float], cases: Sequence[Case]) -> dict[str, Score]:
    """The mean over the cases of each subset, of one value for each case."""
    numbers: dict[str, list[int]] = {}
    for number, case in enumerate(cases):
        numbers.setdefault(case.subset, []).append(number)
    return {
        subset: Score([(1.0, Mean(np.array([values[n] for n in own], dtype=float), [cases[n].group for n in own]))])
        for subset, own in numbers.items()
    }


def over_rows(subsets: Mapping[str, Score]) -> Score:
    """The mean over all rows of subsets that are means."""
    means = [stratum for score in subsets.values() for _, stratum in score.strata if isinstance(stratum, Mean)]
    total = sum(len(mean.values) for mean in means)
    return Score([(len(mean.values) / total, mean) for mean in means])


def mean_of(scores: Sequence[Score], weights: Sequence[float] | None = None) -> Score:
    """The weighted mean of scores, which share no stratum."""
    weights = weights or [1.0] * len(scores)
    return Score(
        [
            (weight / sum(weights) * share, stratum)
            for weight, one in zip(weights, scores, strict=True)
            for share, stratum in one.strata
        ]
    )
