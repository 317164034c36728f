"""A judge's verdicts beside people's ratings of the same rows: agreement, calibration, biases."""

import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from prefopt.data import Example
from prefopt.data.text_episodes import as_seen
from prefopt.data.texts import texts
from prefopt.evaluation.calibration import brier, calibration_error
from prefopt.evaluation.intervals import Observations, estimate
from prefopt.evaluation.judges.agreement import Compared, Rated, of_singles, right, two_raters, with_a_rater
from prefopt.support.errors import PrefoptError
from prefopt.types import Estimate, Verdict


@dataclass(frozen=True)
class RatedRow:
    """A row of the data: its texts, and people's ratings of them.

    Attributes:
        example: with all its columns.
        texts: K of them.
        ratings: for each, its raters' numbers; None where they are not known.
    """

    example: Example
    texts: tuple[str, ...]
    ratings: tuple[np.ndarray, ...] | None

    @classmethod
    def of(cls, example: Example) -> "RatedRow":
        """Of a row of data.

        Raises:
            PrefoptError: there are no ratings, or not for each completion.
        """
        example = as_seen(example)
        ratings = example.columns.get("ratings")
        known = None if ratings is None else _numbers(ratings, example)
        if known is None and example.preference is None and example.scores is None:
            raise PrefoptError(
                f"{example.where}: what people think of them is not known; give `ratings`, `preference`, `votes` or `scores`"
            )
        if known is not None and not all(len(r) for r in known):
            raise PrefoptError(f"{example.where}: a completion that nobody rated: its list in `ratings` is empty")
        return cls(example, tuple(texts(example)), known)

    @property
    def raters(self) -> tuple[np.ndarray, ...] | None:
        """For each text its raters' numbers: `ratings`, or the same in `votes`, a list for each rater; None without either."""
        votes = self.example.columns.get("votes") if self.ratings is None else None
        if votes is None or not all(isinstance(vote, list | tuple) and len(vote) == len(self.texts) for vote in votes):
            return self.ratings
        return tuple(np.array([vote[k] for vote in votes], dtype=float) for k in range(len(self.texts)))

    def humans(self, i: int, j: int) -> float:
        """P(y_i beats y_j) by people: two raters drawn at random, the data's preference, or the order of its scores."""
        if self.example.preference is not None:
            return self.example.preference[i][j]
        if self.ratings is not None:
            first, second = self.ratings[i][:, None], self.ratings[j][None, :]
            return float((first > second).mean() + 0.5 * (first == second).mean())
        assert self.example.scores is not None
        one, other = self.example.scores[i], self.example.scores[j]
        return 0.5 if one is None or other is None else (float(np.sign(one - other)) + 1) / 2


def _numbers(ratings: Any, example: Example) -> tuple[np.ndarray, ...]:
    """A column `ratings` as numbers.

    Raises:
        PrefoptError: it is no list of lists of numbers, one for each completion.
    """
    form = "it is a list for each completion, of its raters' numbers: [[1, -1, 1]] for one completion"
    if not isinstance(ratings, list | tuple | np.ndarray):
        raise PrefoptError(f"{example.where}: `ratings` is {ratings!r}; {form}")
    if len(ratings) != example.size:
        raise PrefoptError(
            f"{example.where}: `ratings` has {len(ratings)} lists for {example.size} completions, which need one each; {form}"
        )
    try:
        known = [np.array(own, dtype=float) for own in ratings]
    except (TypeError, ValueError):
        raise PrefoptError(
            f"{example.where}: `ratings` holds something else than numbers, {ratings!r}; {form}"
        ) from None
    if not all(own.ndim == 1 for own in known):
        raise PrefoptError(f"{example.where}: `ratings` is {ratings!r}; {form}")
    if not all(np.isfinite(own).all() for own in known):
        raise PrefoptError(
            f"{example.where}: `ratings` holds numbers that are not finite, {ratings!r}; leave those raters out"
        )
    return tuple(known)


@dataclass(frozen=True)
class Judgements:
    """A judge's verdicts on all rows.

    Attributes:
        scores: of each row, [K]; NaN is no verdict.
        wins: of each row, P(y_i beats y_j), [K, K].
        notes: of each row.
    """

    scores: Sequence[np.ndarray]
    wins: Sequence[np.ndarray]
    notes: Sequence[Mapping[str, Any]]

    @classmethod
    def of(cls, verdicts: Sequence[Verdict], rows: Sequence[RatedRow]) -> "Judgements":
        """Of verdicts on batches of rows, in their order."""
        scores = [line.double().numpy() for verdict in verdicts for line in verdict.scores]
        wins = [line for verdict in verdicts for line in _wins(verdict)]
        notes = [note for v in verdicts for note in (v.notes or [{}] * len(v.scores))]
        return cls([s[: len(r.texts)] for s, r in zip(scores, rows, strict=True)], wins, notes)


def _wins(verdict: Verdict) -> list[np.ndarray]:
    """P(y_i beats y_j) of each row [K, K]; by the order of the scores where the feedback does not compare. NaN is no verdict."""
    scores = verdict.scores.double()
    by_scores = ((scores[:, :, None] - scores[:, None, :]).sign() + 1) / 2
    wins = by_scores if verdict.preference is None else verdict.preference.double()
    missing = scores.isnan()
    return list(wins.masked_fill(missing[:, :, None] | missing[:, None, :], torch.nan).numpy())


def measure(
    rows: Sequence[RatedRow], rounds: Sequence[Judgements], middle: float, confidence: float, seed: int
) -> tuple[dict[str, Estimate], dict[str, float]]:
    """Agreement with people and biases, with intervals, and numbers without one.

    Args:
        rows: N of them.
        rounds: the judge's verdicts on all rows, each time that it was asked.
        middle: of the ratings.
        confidence: of the intervals.
        seed: of the resampling.
    """
    first = rounds[0]
    estimates: dict[str, Estimate] = {}
    numbers = _counted(first, rows)
    pairs = [(n, i, j) for n, row in enumerate(rows) for i, j in itertools.combinations(range(len(row.texts)), 2)]
    if not pairs and all(row.ratings is not None for row in rows):
        estimates |= of_singles(_rated(rows, first, middle), confidence, seed)
    if pairs:
        compared = _compared(rows, first, pairs)
        estimates |= _of_pairs(compared, rows, first, pairs, confidence, seed)
        known = ~np.isnan(compared.judged)
        margins = torch.logit(torch.tensor(compared.judged[known]), eps=1e-6)
        numbers["ece"] = calibration_error(margins, torch.tensor(compared.humans[known]))
    if len(rounds) > 1:
        estimates["consistency"] = _consistency(rows, rounds, pairs, confidence, seed)
    return estimates, numbers


def _rated(rows: Sequence[RatedRow], judgements: Judgements, middle: float) -> Rated:
    """Every text with its ratings, padded."""
    ratings = [r for row in rows for r in row.ratings or ()]
    table = np.full((len(ratings), max(map(len, ratings))), np.nan)
    for line, own in zip(table, ratings, strict=True):
        line[: len(own)] = own
    lengths = np.array([float(len(text)) for row in rows for text in row.texts])
    return Rated(np.concatenate(judgements.scores), table, lengths, middle)


def _compared(rows: Sequence[RatedRow], judgements: Judgements, pairs: Sequence[tuple[int, int, int]]) -> Compared:
    return Compared(
        np.array([judgements.wins[n][i, j] for n, i, j in pairs]),
        np.array([rows[n].humans(i, j) for n, i, j in pairs]),
        np.array([float(len(rows[n].texts[i]) - len(rows[n].texts[j])) for n, i, j in pairs]),
        [rows[n].example.group or str(n) for n, _, _ in pairs],
    )


def _of_pairs(
    compared: Compared,
    rows: Sequence[RatedRow],
    judgements: Judgements,
    pairs: Sequence[tuple[int, int, int]],
    confidence: float,
    seed: int,
) -> dict[str, Estimate]:
    """Agreement, calibration and biases of comparisons, each a mean over pairs."""
    judged, humans = compared.judged, compared.humans
    known = torch.tensor(judged)
    sides = np.sign(compared.longer)
    sides[sides == 0] = np.nan
    values = {
        "accuracy": right(judged, humans),
        "agreement_with_a_rater": with_a_rater(judged, humans),
        "agreement_ceiling": np.maximum(humans, 1 - humans),
        "brier": brier(torch.logit(known, eps=1e-6), torch.tensor(humans)).numpy(),
        "prefers_longer": (np.sign((judged - 0.5) * sides) + 1) / 2,
        "prefers_longer_raters": (np.sign((humans - 0.5) * sides) + 1) / 2,
        **_by_order(judgements, pairs, humans),
    }
    estimates = {name: _mean(value, compared.groups, confidence, seed) for name, value in values.items()}
    if all(row.raters is not None for row in rows):
        sums, counts = two_raters([(rows[n].raters[i], rows[n].raters[j]) for n, i, j in pairs])  # type: ignore[index]
        observed = Observations(sums, counts, compared.groups)
        if counts.sum():
            estimates["accuracy_left_out_raters"] = estimate(observed, confidence, seed, (0.0, 1.0))
    return {name: e for name, e in estimates.items() if e is not None}


def _by_order(
    judgements: Judgements, pairs: Sequence[tuple[int, int, int]], humans: np.ndarray
) -> dict[str, np.ndarray]:
    """What a judge that compares says in each of the two orders, where it asked for both: the bias that averaging takes out."""
    nothing = np.full((2, 2), np.nan)
    margins = [judgements.notes[n].get("margins") for n, _, _ in pairs]
    both = [
        nothing if m is None else np.array([[np.nan if v is None else v for v in line] for line in m], dtype=float)
        for m in margins
    ]
    one = np.array([m[i, j] if m is not nothing else np.nan for m, (_, i, j) in zip(both, pairs, strict=True)])
    other = np.array([m[j, i] if m is not nothing else np.nan for m, (_, i, j) in zip(both, pairs, strict=True)])
    if np.isnan(one + other).all():
        return {}
    first = [torch.tensor(m).sigmoid().numpy() for m in (one, other)]
    return {
        "prefers_first": np.mean([np.where(np.isnan(m), np.nan, (np.sign(m) + 1) / 2) for m in (one, other)], axis=0),
        "turned_by_order": np.where(np.isnan(one + other), np.nan, (one * other > 0).astype(float)),
        "accuracy_one_order": (right(first[0], humans) + right(1 - first[1], humans)) / 2,
    }


def _consistency(
    rows: Sequence[RatedRow],
    rounds: Sequence[Judgements],
    pairs: Sequence[tuple[int, int, int]],
    confidence: float,
    seed: int,
) -> Estimate:
    """How often two rounds agree: on which of two is better, or, of single texts, on the score to a hundredth of its range."""
    groups = [row.example.group or str(n) for n, row in enumerate(rows)]
    if pairs:
        signs = np.array([[np.sign(r.wins[n][i, j] - 0.5) for n, i, j in pairs] for r in rounds])
        same, where = (signs == signs[0]).all(0), [groups[n] for n, _, _ in pairs]
        missing = np.isnan(signs).any(0)
    else:
        scores = np.array([np.concatenate(r.scores) for r in rounds])
        spread = np.nanmax(scores) - np.nanmin(scores)
        same, where = np.ptp(scores, 0) <= 0.01 * spread, groups
        missing = np.isnan(scores).any(0)
    mean = _mean(np.where(missing, np.nan, same.astype(float)), where, confidence, seed)
    return mean or Estimate(float("nan"), float("nan"), float("nan"), 0)


def _mean(values: np.ndarray, groups: Sequence[str], confidence: float, seed: int) -> Estimate | None:
    """The mean of what is known, each between 0 and 1, or nothing."""
    known = ~np.isnan(values)
    if not known.any():
        return None
    of_known = [group for group, k in zip(groups, known, strict=True) if k]
    return estimate(Observations(values[known], np.ones(int(known.sum())), of_known), confidence, seed, (0.0, 1.0))


def _counted(judgements: Judgements, rows: Sequence[RatedRow]) -> dict[str, float]:
    """Texts, those without a verdict, everything that notes count, and cost."""
    counts: Counter[str] = Counter()
    outside = []
    for note in judgements.notes:
        counts.update({name: value for name, value in note.items() if type(value) is int})
        counts.update(note.get("usage", {}))
        outside += [note["outside"]] if "outside" in note else []
    missing = int(sum(np.isnan(scores).sum() for scores in judgements.scores))
    numbers = {"texts": float(sum(len(row.texts) for row in rows)), "no_verdict": float(missing)}
    numbers |= {name: float(value) for name, value in counts.items() if name != "turned"}
    return numbers | ({"outside": float(np.mean(outside))} if outside else {})
