"""Verdicts that a judge writes, for servers that give no likelihoods."""

import itertools
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from prefopt.feedback.judges.asking import AnswerFormat, Reply, Request, Tally
from prefopt.feedback.judges.pairs import LETTERS, Average, compared_by_letters, pairs
from prefopt.feedback.judges.parsing import parse
from prefopt.feedback.judges.points import TEN, expected, numbers, points, table
from prefopt.feedback.judges.rubric import Rubric
from prefopt.support.errors import PrefoptError
from prefopt.types import Verdict

REFUSAL = re.compile(
    r"\b(?:I(?:['’]m| am) (?:sorry|unable|not able)|I (?:can['’]t|cannot|can not|won['’]t|will not|must decline)"
    r"|as an AI|unable to (?:assist|judge|rate))",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Generative:
    """A number or a letter that is read from what the judge writes.

    A rubric that shows two completions is answered by the first's label, the second's, or a third for a tie: the wins of both
    orders are averaged (or not: `average: none`), as in `Pairwise`. One that shows a single completion is answered by a number,
    rescaled to [−1, 1]; with `samples`, the answers are the distribution that `Expected` reads from likelihoods.

    Only a text that came to its end and leaves no doubt has a verdict: after its thinking it is the label, begins with it, or has
    it after the mark, which is the rubric's `answer` (`parse`). Anything else is counted, as cut_off, refused or malformed, and is
    no verdict.

    Attributes:
        average: over the two orders of a pair.
    """

    average: Average = "probabilities"
    shows: tuple[str, ...] = ("completion",)
    written = True

    def labels(self, rubric: Rubric, answer_format: AnswerFormat) -> tuple[str, ...]:
        """Two or three, or numbers.

        Raises:
            PrefoptError: they are something else.
        """
        labels = answer_format.choose(rubric, LETTERS if rubric.compares else TEN)
        if rubric.compares and len(labels) not in (2, 3):
            raise PrefoptError(
                f"{rubric.name}: labels are the first's, the second's, and perhaps one for a tie, not {len(labels)}"
            )
        if not rubric.compares:
            numbers(labels, rubric.name)
        return labels

    def judge(self, request: Request) -> Verdict:
        """Scores [B, K] and preference [B, K, K]."""
        labels = self.labels(request.rubric, request.answer_format)
        cases = pairs(request, self.average) if request.rubric.compares else points(request)
        replies, tallies = request.answers(cases, labels, written=True)
        verdicts_by_place = {
            place: [
                v for reply in group if (v := read(reply, labels, request.rubric.mark, tallies[place[0]])) is not None
            ]
            for place, group in itertools.groupby(replies, key=lambda reply: reply.case.place)
        }
        if request.rubric.compares:
            wins = {
                place: _mean([(1.0, 0.0, 0.5)[v] for v in verdicts]) for place, verdicts in verdicts_by_place.items()
            }
            return compared_by_letters(wins, request.completions, self.average, tallies)
        return self._scored(verdicts_by_place, labels, request.rubric, request.completions, tallies)

    @staticmethod
    def _scored(
        verdicts_by_place: Mapping[tuple[int, ...], Sequence[int]],
        labels: Sequence[str],
        rubric: Rubric,
        completions: Any,
        tallies: Any,
    ) -> Verdict:
        weights = table(completions, len(labels))
        for place, verdicts in verdicts_by_place.items():
            if verdicts:
                weights[place] = torch.bincount(torch.tensor(verdicts), minlength=len(labels)).double() / len(verdicts)
        return expected(weights, numbers(labels, rubric.name), [tally.note for tally in tallies])


def read(reply: Reply, labels: Sequence[str], mark: str, tally: Tally) -> int | None:
    """Which label a reply is; None, and counted, where it is none."""
    if reply.answer.text is None:
        return None
    if reply.answer.cut_off:
        tally.counts["cut_off"] += 1
        return None
    label = parse(reply.answer.text, labels, mark)
    if label is None:
        tally.counts["refused" if REFUSAL.search(reply.answer.text) else "malformed"] += 1
    return label


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else math.nan
