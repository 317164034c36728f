"""Statistics of agreement: of a judge with people, and of people with each other."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from prefopt.types import Estimate

Floats = NDArray[np.float64]

RESAMPLES = 1000
FEW = 10
"""Texts below which a rater's agreement with the others says nothing."""


@dataclass(frozen=True)
class Rated:
    """Single texts that several people rated, and a judge scored.

    Attributes:
        scores: [N], the judge's; none is NaN.
        ratings: [N, R], NaN where a text has fewer raters.
        lengths: [N], characters.
        middle: ratings above it are good, below it bad.
    """

    scores: Floats
    ratings: Floats
    lengths: Floats
    middle: float = 0.0

    def take(self, rows: NDArray[np.intp]) -> "Rated":
        """These texts alone."""
        return Rated(self.scores[rows], self.ratings[rows], self.lengths[rows], self.middle)

    @property
    def means(self) -> Floats:
        """[N], the mean rating of each text."""
        return np.nanmean(self.ratings, 1)


@dataclass(frozen=True)
class Compared:
    """Pairs of texts that people and a judge compared, each in the order in which the data have them.

    Attributes:
        judged: [M], P(the first beats the second) by the judge.
        humans: [M], the same by people.
        longer: [M], how many characters the first is longer.
        groups: [M], what is resampled together.
    """

    judged: Floats
    humans: Floats
    longer: Floats
    groups: Sequence[str]


def auc(scores: Floats, good: NDArray[np.bool_], counts: Floats | None = None) -> Floats:
    """P(a good one has a higher score than a bad one), ties ½; NaN where either is missing. Mann & Whitney (1947).

    Args:
        scores: [N].
        good: [N].
        counts: [S, N], how often each is there, in each of S samples; None is once.

    Returns:
        [S], or [1].
    """
    counts = np.ones((1, len(scores))) if counts is None else counts
    wins = (np.sign(scores[good][:, None] - scores[~good][None, :]) + 1) / 2
    ones, others = counts[:, good], counts[:, ~good]
    total = ones.sum(1) * others.sum(1)
    return np.divide(((ones @ wins) * others).sum(1), total, out=np.full(len(counts), np.nan), where=total > 0)


def discrimination(rated: Rated, counts: Floats) -> Floats:
    """AUC of the scores for texts whose mean rating is above the middle against those below it; those at it are left out."""
    clear = rated.means != rated.middle
    return auc(rated.scores[clear], rated.means[clear] > rated.middle, counts[:, clear])


def rank_correlation(one: Floats, other: Floats, counts: Floats) -> Floats:
    """Spearman's ρ in each sample, [S]; NaN where either does not vary."""
    correlations = np.full(len(counts), np.nan)
    for s, times in enumerate(counts.astype(int)):
        a, b = stats.rankdata(np.repeat(one, times)), stats.rankdata(np.repeat(other, times))
        if np.ptp(a) and np.ptp(b):
            correlations[s] = np.corrcoef(a, b)[0, 1]
    return correlations


def against_the_rest(rated: Rated, counts: Floats, raters: bool) -> Floats:
    """Leave one rater out: AUC for the sign of the others' mean rating, averaged over who is left out; in each sample, [S].

    The rater that is left out is a place in the list of each text's ratings. The truth is the same for judge and raters, the mean
    of all but that rater; so the two can be compared, and neither is measured against itself.

    Args:
        rated: the texts.
        counts: [S, N], how often each is there.
        raters: of the rating that is left out; otherwise of the judge's scores.
    """
    sums, weights = np.zeros(len(counts)), np.zeros(len(counts))
    several = (~np.isnan(rated.ratings)).sum(1) > 1
    for place, own in enumerate(rated.ratings.T):
        rows = np.flatnonzero(several & ~np.isnan(own))
        if len(rows) < FEW:
            continue
        rest = np.nanmean(np.delete(rated.ratings[rows], place, 1), 1)
        rows, rest = rows[rest != rated.middle], rest[rest != rated.middle]
        values = auc((own if raters else rated.scores)[rows], rest > rated.middle, counts[:, rows])
        known = ~np.isnan(values)
        weight = counts[:, rows].sum(1) * known
        sums += np.where(known, values, 0) * weight
        weights += weight
    return np.divide(sums, weights, out=np.full(len(counts), np.nan), where=weights > 0)


def of_singles(rated: Rated, confidence: float = 0.95, seed: int = 0) -> dict[str, Estimate]:
    """What there is to say of scores of single texts, with percentile bootstrap intervals over texts; {} for fewer than two."""
    rated = rated.take(np.flatnonzero(~np.isnan(rated.scores)))
    if len(rated.scores) < 2:
        return {}
    measures: dict[str, Callable[[Floats], Floats]] = {
        "auc": lambda counts: discrimination(rated, counts),
        "rank_correlation": lambda counts: rank_correlation(rated.scores, rated.means, counts),
        "auc_left_out_judge": lambda counts: against_the_rest(rated, counts, raters=False),
        "auc_left_out_raters": lambda counts: against_the_rest(rated, counts, raters=True),
        "length_correlation": lambda counts: rank_correlation(rated.scores, rated.lengths, counts),
        "length_correlation_raters": lambda counts: rank_correlation(rated.means, rated.lengths, counts),
    }
    return resampled(measures, len(rated.scores), confidence, seed)


def resampled(
    measures: dict[str, Callable[[Floats], Floats]], texts: int, confidence: float, seed: int
) -> dict[str, Estimate]:
    """Each measure, with the interval of the same resamples of texts for all; those that cannot be measured are left out."""
    counts = np.random.default_rng(seed).multinomial(texts, [1 / texts] * texts, size=RESAMPLES).astype(float)
    tails, estimates = 50 * (1 - confidence), {}
    for name, measure in measures.items():
        value = float(measure(np.ones((1, texts)))[0])
        again = measure(counts)
        low, high = np.nanpercentile(again, [tails, 100 - tails]) if not np.isnan(again).all() else (np.nan, np.nan)
        if not np.isnan(value):
            estimates[name] = Estimate(value, float(low), float(high), texts)
    return estimates


def right(judged: Floats, humans: Floats) -> Floats:
    """[M]: 1 where both prefer the same, ½ where the judge has no preference, 0 else; NaN where people have none."""
    return np.where(humans == 0.5, np.nan, (np.sign((judged - 0.5) * (humans - 0.5)) + 1) / 2)


def with_a_rater(judged: Floats, humans: Floats) -> Floats:
    """[M]: the chance that a person drawn at random prefers what the judge does; ½ where it has no preference."""
    return np.where(judged > 0.5, humans, np.where(judged < 0.5, 1 - humans, 0.5))


def two_raters(ratings: Sequence[tuple[Floats, Floats]]) -> tuple[Floats, Floats]:
    """For each pair of texts, how often one person's comparison agrees with that of all others.

    The r-th rater of the one and the r-th of the other stand for one person, who prefers the higher rating and has no
    preference where they are equal (½). The others' preference is by their mean ratings; where these are equal there is none, and
    the person is left out.

    Args:
        ratings: for each pair, those of the first and of the second text.

    Returns:
        Sums of agreement [M], and for how many persons [M].
    """
    sums, counts = np.zeros(len(ratings)), np.zeros(len(ratings))
    for m, (first, second) in enumerate(ratings):
        raters = min(len(first), len(second))
        saw_both = ~np.isnan(first[:raters] + second[:raters])
        one, other = first[:raters][saw_both], second[:raters][saw_both]
        raters = len(one)
        if raters < 2:
            continue
        rest = (one.sum() - one) / (raters - 1) - (other.sum() - other) / (raters - 1)
        agrees = (np.sign((one - other) * rest) + 1) / 2
        known = np.abs(rest) > 1e-9
        sums[m], counts[m] = agrees[known].sum(), known.sum()
    return sums, counts
