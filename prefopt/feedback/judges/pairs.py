"""Judging two completions against each other, in both orders."""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from prefopt.feedback.judges.asking import AnswerFormat, Case, Request, likelihoods, margin
from prefopt.feedback.judges.rubric import Rubric
from prefopt.support.errors import PrefoptError
from prefopt.types import Verdict

Average = Literal["probabilities", "logits", "none"]
LETTERS = ("A", "B")


@dataclass(frozen=True)
class Pairwise:
    """P(y_i beats y_j) by the likelihoods of two labels, for all pairs of a prompt's completions.

    m_ij = log p(first label) − log p(second label) where y_i is shown first. It is d + b, of how much better y_i is and how much
    the judge prefers what it sees first, and the other order has m_ji = −d + b. Then

    probabilities:  P_ij = ½ [σ(m_ij) + 1 − σ(m_ji)] = ½ [σ(d + b) + σ(d − b)]
    logits:         P_ij = σ(½ (m_ij − m_ji)) = σ(d): the bias is gone
    none:           P_ij = σ(m_ij) = σ(d + b) for i < j: one order, with its bias, at half the price

    scores[b, i] is the mean over the others of P_ij. A pair without a verdict is ½ in the preference and left out of the scores;
    a completion without any has none.

    Source: Lee et al. (RLAIF), arXiv 2309.00267v3, §2.1, who average probabilities.

    Attributes:
        average: over the two orders.
    """

    average: Average = "probabilities"
    shows = ("completion_a", "completion_b")
    written = False

    def labels(self, rubric: Rubric, answer_format: AnswerFormat) -> tuple[str, ...]:
        """Of the first and the second completion.

        Raises:
            PrefoptError: there are not two.
        """
        labels = answer_format.choose(rubric, LETTERS)
        if len(labels) != 2:
            raise PrefoptError(
                f"{rubric.name}: a pairwise judge has two labels, of the first and the second, not {len(labels)}"
            )
        return labels

    def judge(self, request: Request) -> Verdict:
        """Scores [B, K] and preference [B, K, K]."""
        labels = self.labels(request.rubric, request.answer_format)
        replies, tallies = request.answers(pairs(request, self.average), labels)
        margins = _matrix(request.completions)
        for at, group in _by_place(replies):
            probabilities = [p for reply in group if (p := likelihoods(reply, labels, tallies[at[0]])) is not None]
            known = [m for p in probabilities if not math.isnan(m := margin(p[0], p[1]))]
            tallies[at[0]].counts["unlikely"] += len(probabilities) - len(known)
            margins[at] = sum(known) / len(known) if known else math.nan
        for tally, own in zip(tallies, margins, strict=True):
            tally.more |= _bias(own.sigmoid(), {"margins": _listed(own)})
        return compared(_averaged(margins, self.average), [tally.note for tally in tallies])


def pairs(request: Request, average: Average) -> list[Case]:
    """Every pair of completions that are not empty, in both orders or in the given one.

    Raises:
        PrefoptError: a single completion, which has nothing to be compared with.
    """
    completions = request.completions
    if completions and max(map(len, completions)) < 2:
        raise PrefoptError(
            "a pairwise judge compares the completions of a prompt, and there is one each: sample more "
            "(source.rollouts.completions), or judge by mode: pointwise"
        )
    order = itertools.combinations if average == "none" else itertools.permutations
    return [
        Case((b, i, j), request.prompts[b], {"completion_a": texts[i], "completion_b": texts[j]}, request.rows[b])
        for b, texts in enumerate(completions)
        for i, j in order([k for k, text in enumerate(texts) if text.strip()], 2)
    ]


def compared(wins: Tensor, notes: Sequence[Mapping[str, Any]]) -> Verdict:
    """A verdict of P(y_i beats y_j), [B, K, K], with NaN where there is none."""
    return Verdict(wins.nanmean(-1).float(), _filled(wins).float(), notes)


def compared_by_letters(
    preferred: Mapping[tuple[int, ...], float], completions: Any, average: Average, tallies: Any
) -> Verdict:
    """The same from written verdicts: 1 where the first shown was preferred, 0 the second, ½ neither.

    Args:
        preferred: by prompt, first and second completion; NaN where there is none.
        completions: K texts of each prompt.
        average: none for one order; otherwise the two are averaged, and a pair without either has no verdict.
        tallies: of each prompt.
    """
    first = _matrix(completions)
    for at, value in preferred.items():
        first[at] = value
    for tally, own in zip(tallies, first, strict=True):
        tally.more |= _bias(own, {})
    other = first.mT
    return compared(
        _one_order(first) if average == "none" else (first + 1 - other) / 2, [tally.note for tally in tallies]
    )


def _averaged(margins: Tensor, average: Average) -> Tensor:
    """P [B, K, K] of the margins of both orders."""
    if average == "none":
        return _one_order(margins.sigmoid())
    if average == "logits":
        return ((margins - margins.mT) / 2).sigmoid()
    return (margins.sigmoid() + (-margins.mT).sigmoid()) / 2


def _one_order(first: Tensor) -> Tensor:
    """P where only i < j was asked."""
    return torch.where(first.isnan(), 1 - first.mT, first)


def _bias(first: Tensor, more: dict[str, Any]) -> dict[str, Any]:
    """How often the completion that is shown first is preferred, and how many pairs turn round with the order.

    Args:
        first: [K, K], P(the first shown wins) where i is first and j second.
        more: what else goes into the note.
    """
    known = first[~first.isnan()]
    if not len(known):
        return more
    both = torch.triu((first - 0.5) * (first.mT - 0.5) > 0, 1)  # the same place wins both times
    return {"prefers_first": known.mean().item(), "turned": int(both.sum())} | more


def _matrix(completions: Any) -> Tensor:
    """[B, K, K] of NaN, in double precision."""
    width = max((len(texts) for texts in completions), default=0)
    return torch.full((len(completions), width, width), math.nan, dtype=torch.float64)


def _filled(wins: Tensor) -> Tensor:
    """½ where nothing is known; on the diagonal, too."""
    return wins.nan_to_num(0.5)


def _by_place(replies: Any) -> Any:
    return ((place, list(group)) for place, group in itertools.groupby(replies, key=lambda reply: reply.case.place))


def _listed(values: Tensor) -> list[list[float | None]]:
    return [[None if value != value else value for value in row] for row in values.tolist()]
