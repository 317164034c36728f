"""How far two opinions of the same texts agree: a judge's with people's, and people's with each other's."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from prefopt.estimates import Estimate

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


def auc(scores: Floats, good: NDArray[np.bool_]) -> float:
    """P(a good one has a higher score than a bad one), ties ½; NaN where either is missing. Mann & Whitney (1947)."""
    n, m = int(good.sum()), int((~good).sum())
    if not n or not m:
        return float("nan")
    return float((stats.rankdata(scores)[good].sum() - n * (n + 1) / 2) / (n * m))


def discrimination(rated: Rated) -> float:
    """AUC of the scores for texts whose mean rating is above the middle against those below it; those at it are left out."""
    means = rated.means
    kept = means != rated.middle
    return auc(rated.scores[kept], means[kept] > rated.middle)


def rank_correlation(one: Floats, other: Floats) -> float:
    """Spearman's ρ; NaN where either does not vary."""
    if np.ptp(one) == 0 or np.ptp(other) == 0:
        return float("nan")
    return float(stats.spearmanr(one, other).statistic)


def against_the_rest(rated: Rated, scores: Callable[[Rated, int], Floats]) -> float:
    """Leave one rater out: the AUC of some scores for the sign of the others' mean rating, averaged over who is left out.

    The rater that is left out is a place in the list of each text's ratings. The truth is the same for judge and raters, the mean
    of all but that rater; so the two can be compared, and neither is measured against itself.

    Args:
        rated: the texts.
        scores: [N] of those texts, of whoever is measured, when this rater is left out.
    """
    found, weights = [], []
    for place in range(rated.ratings.shape[1]):
        rows = np.flatnonzero(~np.isnan(rated.ratings[:, place]) & ((~np.isnan(rated.ratings)).sum(1) > 1))
        part = rated.take(rows)
        rest = np.nanmean(np.delete(part.ratings, place, 1), 1) if len(rows) else np.array([])
        kept = rest != part.middle
        value = auc(scores(part, place)[kept], rest[kept] > part.middle)
        if kept.sum() >= FEW and not np.isnan(value):
            found.append(value)
            weights.append(len(rows))
    return float(np.average(found, weights=weights)) if found else float("nan")


def of_singles(rated: Rated, confidence: float = 0.95, seed: int = 0) -> dict[str, Estimate]:
    """What there is to say of scores of single texts, with percentile bootstrap intervals over texts."""
    rated = rated.take(np.flatnonzero(~np.isnan(rated.scores)))
    measures: dict[str, Callable[[Rated], float]] = {
        "auc": discrimination,
        "rank_correlation": lambda r: rank_correlation(r.scores, r.means),
        "auc_left_out_judge": lambda r: against_the_rest(r, lambda part, _: part.scores),
        "auc_left_out_raters": lambda r: against_the_rest(r, lambda part, place: part.ratings[:, place]),
        "length_correlation": lambda r: rank_correlation(r.scores, r.lengths),
        "length_correlation_raters": lambda r: rank_correlation(r.means, r.lengths),
    }
    return resampled(measures, rated, confidence, seed)


def resampled(
    measures: dict[str, Callable[[Rated], float]], rated: Rated, confidence: float, seed: int
) -> dict[str, Estimate]:
    """Each measure of the texts, with the interval of the same resamples of texts for all."""
    draw, n = np.random.default_rng(seed), len(rated.scores)
    values = {name: measure(rated) for name, measure in measures.items()}
    again = np.array(
        [
            [m(part) for m in measures.values()]
            for part in (rated.take(draw.integers(n, size=n)) for _ in range(RESAMPLES))
        ]
        if n > 1
        else [[np.nan] * len(measures)]
    )
    tails = 50 * (1 - confidence)
    found = {}
    for i, (name, value) in enumerate(values.items()):
        known = again[~np.isnan(again[:, i]), i]
        low, high = np.percentile(known, [tails, 100 - tails]) if len(known) > 1 else (np.nan, np.nan)
        found[name] = Estimate(value, float(low), float(high), n)
    return {name: e for name, e in found.items() if not np.isnan(e.value)}


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
        if raters < 2:
            continue
        one, other = first[:raters], second[:raters]
        rest = (one.sum() - one) / (raters - 1) - (other.sum() - other) / (raters - 1)
        agrees = (np.sign((one - other) * rest) + 1) / 2
        known = np.abs(rest) > 1e-9
        sums[m], counts[m] = agrees[known].sum(), known.sum()
    return sums, counts
