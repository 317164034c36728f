"""RewardBench 2: the best of four answers, and questions with several right ones.

Source: Malik et al., arXiv 2506.01937; package rewardbench 0.1.4 (`utils.reroll_and_score_dataset`, `process_single_model`).
"""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from prefopt.evaluation.benchmarks.answers import Answer
from prefopt.evaluation.benchmarks.cases import Case, is_listed, several
from prefopt.evaluation.benchmarks.scores import Score, by_subset, mean_of
from prefopt.evaluation.intervals import bootstrap
from prefopt.support.errors import PrefoptError
from prefopt.types import Estimate

TIES = "ties"
"""The subset, whatever its case, in which several answers are right."""

SHARES = np.array([0.3, 0.3, 0.2, 0.2, 0.01])
"""Of the five parts of the score of Ties, in the order of `Ties.parts`."""


class RewardBench2:
    """Best of four by subset, Ties with its own score, and the mean over subsets.

    A row is right where the right answer has the highest score of all; where it shares that with others, it counts 1 / as many.
    A judge that compares scores each answer by how often it beats the others; without a verdict, a row counts 1 / K, as a guess.
    """

    name = "rewardbench2"
    columns = "id, prompt, chosen: list, rejected: list, subset"

    def recognises(self, row: Mapping[str, Any]) -> bool:
        """Whether a row is of this benchmark."""
        return is_listed(row)

    def case(self, row: Mapping[str, Any], where: str) -> Case:
        """A row of the data.

        Raises:
            PrefoptError: its lists cannot be read, or it is of Ties and has an id of another form.
        """
        case = several(row, where, str(row.get("subset") or "pairs"))
        if _is_ties(case):
            _question(case, where)
        elif case.right != 1:
            raise PrefoptError(
                f"{where}: {case.right} chosen answers; only the subset Ties has several right ones, every other row one"
            )
        return case

    def subsets(self, cases: Sequence[Case], answers: Sequence[Answer]) -> dict[str, Score]:
        """The score of each subset."""
        ties = [(case, answer) for case, answer in zip(cases, answers, strict=True) if _is_ties(case)]
        subsets = by_subset([_share(answer.scores) for answer in answers], cases)
        return subsets | ({ties[0][0].subset: Score([(1.0, Ties.of(ties))])} if ties else {})

    def sections(self, subsets: Mapping[str, Score]) -> dict[str, Score]:
        """The subsets."""
        return dict(subsets)

    def overall(self, subsets: Mapping[str, Score], sections: Mapping[str, Score]) -> Score:
        """The mean over subsets."""
        return mean_of(list(subsets.values()))

    def numbers(self, cases: Sequence[Case], answers: Sequence[Answer]) -> dict[str, float]:
        """Nothing more."""
        return {}


def _is_ties(case: Case) -> bool:
    return case.subset.lower() == TIES


def _share(scores: np.ndarray) -> float:
    if math.isnan(scores[0]):
        return 1 / len(scores)
    best = np.nanmax(scores)
    return float(scores[0] == best) / float((scores == best).sum())


def _question(case: Case, where: str) -> tuple[str, str]:
    """`ref` or `tied`, and the number of the question that both are about."""
    kind, _, number = case.key.partition(":")
    if kind not in ("ref", "tied") or not number:
        raise PrefoptError(f"{where}: a row of Ties has an `id` such as ref:7 or tied:7, got {case.key!r}")
    return kind, number


class Margins(NamedTuple):
    """Of one row of Ties.

    Attributes:
        ahead: the lowest score of a right answer less the highest of a wrong one.
        spread: the highest score of a right answer less the lowest; None with a single right one.
    """

    ahead: float
    spread: float | None

    @classmethod
    def of(cls, case: Case, answer: Answer) -> "Margins":
        """Without a verdict on one of the answers, nothing is ahead."""
        right, wrong = answer.scores[: case.right], answer.scores[case.right :]
        if answer.missing:
            return cls(-math.inf, 0.0 if case.right > 1 else None)
        return cls(float(right.min() - wrong.max()), float(np.ptp(right)) if len(right) > 1 else None)


@dataclass(frozen=True)
class Ties:
    """Several right answers (`tied`) beside the same kind of question with a single one (`ref`).

    0.3 P(tied: all right ones above all wrong ones) + 0.3 P(ref: the right one above all wrong ones)
    + 0.2 P(m > s) + 0.2 P(min(m, m_ref) > s) + 0.01 mean tanh(min(m, m_ref) / s − 1)

    with m the lowest right score less the highest wrong one, s the spread of the right ones; the last three are over questions
    that have both rows, the last one over those with s > 0.

    Attributes:
        values: [G, 5] of each question, sums of the five parts.
        counts: [G, 5] over how many rows.
    """

    values: np.ndarray
    counts: np.ndarray

    @classmethod
    def of(cls, rows: Sequence[tuple[Case, Answer]]) -> "Ties":
        """Of the rows of the subset."""
        questions: dict[str, dict[str, Margins]] = defaultdict(dict)
        for case, answer in rows:
            kind, number = _question(case, case.key)
            questions[number][kind] = Margins.of(case, answer)
        parts = [cls.parts(of_one.get("tied"), of_one.get("ref")) for of_one in questions.values()]
        known = np.array([[value is not None for value in row] for row in parts], dtype=float)
        return cls(np.array([[value or 0.0 for value in row] for row in parts]), known)

    @property
    def rows(self) -> int:
        """Of both kinds."""
        return int(self.counts[:, :2].sum())

    @staticmethod
    def parts(tied: Margins | None, ref: Margins | None) -> list[float | None]:
        """The five parts of one question; None where it has no such row."""
        one = None if tied is None else float(tied.ahead > 0)
        other = None if ref is None else float(ref.ahead > 0)
        if tied is None or ref is None or tied.spread is None:
            return [one, other, None, None, None]
        both = min(tied.ahead, ref.ahead)
        ratio = math.tanh(both / tied.spread - 1) if tied.spread > 0 else None
        return [one, other, float(tied.ahead > tied.spread), float(both > tied.spread), ratio]

    def estimate(self, confidence: float = 0.95, seed: int = 0) -> Estimate:
        """The score, with a percentile bootstrap interval over questions; a part that no row has counts 0, as in the package."""

        def score(*columns: np.ndarray, axis: int = -1) -> np.ndarray:
            sums = np.stack([column.sum(axis) for column in columns])
            values, counts = sums[: len(SHARES)], sums[len(SHARES) :]
            means = np.divide(values, counts, out=np.zeros_like(values), where=counts > 0)
            return np.tensordot(SHARES, means, 1)

        return bootstrap([*self.values.T, *self.counts.T], score, confidence, seed)
