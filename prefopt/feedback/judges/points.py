"""Judging each completion by itself, from the likelihoods of labels."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from prefopt.feedback.judges.asking import AnswerFormat, Case, Request, likelihoods, margin
from prefopt.feedback.judges.rubric import Rubric
from prefopt.support.errors import PrefoptError
from prefopt.types import Verdict

TEN = tuple(map(str, range(1, 11)))


@dataclass(frozen=True)
class Pointwise:
    """r(x, y) = log p(first label) − log p(last label), of labels that go from best to worst: good, (fine,) bad.

    P(y_i beats y_j) = σ(scale · (r_i − r_j)): a margin read as a Bradley–Terry reward.

    Attributes:
        scale: sharpness of the preference; scores have none.
    """

    scale: float = 1.0
    shows = ("completion",)
    written = False

    def labels(self, rubric: Rubric, answer_format: AnswerFormat) -> tuple[str, ...]:
        """From best to worst.

        Raises:
            PrefoptError: fewer than two.
        """
        labels = answer_format.choose(rubric, ())
        if len(labels) < 2:
            raise PrefoptError(f"{rubric.name}: a pointwise judge needs `labels`, the best first and the worst last")
        return labels

    def judge(self, request: Request) -> Verdict:
        """Scores [B, K] and preference [B, K, K]."""
        labels = self.labels(request.rubric, request.answer_format)
        replies, tallies = request.answers(points(request), labels)
        scores = table(request.completions)
        for (b, k), group in itertools.groupby(replies, key=lambda reply: reply.case.place):
            probabilities = [p for reply in group if (p := likelihoods(reply, labels, tallies[b])) is not None]
            known = [m for p in probabilities if not math.isnan(m := margin(p[0], p[-1]))]
            tallies[b].counts["unlikely"] += len(probabilities) - len(known)
            scores[b, k] = sum(known) / len(known) if known else math.nan
        wins = (self.scale * (scores[:, :, None] - scores[:, None, :])).sigmoid()
        return Verdict(scores.float(), wins.nan_to_num(0.5).float(), [tally.note for tally in tallies])


@dataclass(frozen=True)
class Expected:
    """r(x, y) = 2 (E[s] − low) / (high − low) − 1, in [−1, 1]: the expected score under the likelihoods of all scores.

    E[s] = Σ_s s p(s) / Σ_s p(s) over labels that are numbers, 1 to 10 unless they are given. p is of the whole label, so that the
    likelihood of "10" is not also "1"'s; what is outside of all of them is left out, and its mass is in the note.

    P(y_i beats y_j) = Σ_s p_i(s) [Σ_{t<s} p_j(t) + ½ p_j(s)]: two scores drawn, one of each, ties ½.

    Source: Lee et al. (d-RLAIF), arXiv 2309.00267v3, §2.2.
    """

    shows = ("completion",)
    written = False

    def labels(self, rubric: Rubric, answer_format: AnswerFormat) -> tuple[str, ...]:
        """Numbers.

        Raises:
            PrefoptError: they are none, or all the same.
        """
        labels = answer_format.choose(rubric, TEN)
        numbers(labels, rubric.name)
        return labels

    def judge(self, request: Request) -> Verdict:
        """Scores [B, K] and preference [B, K, K]."""
        labels = self.labels(request.rubric, request.answer_format)
        replies, tallies = request.answers(points(request), labels)
        weights = table(request.completions, len(labels))  # p(s), [B, K, S]
        for (b, k), group in itertools.groupby(replies, key=lambda reply: reply.case.place):
            probabilities = [p for reply in group if (p := likelihoods(reply, labels, tallies[b])) is not None]
            known = [torch.tensor(p, dtype=torch.float64) / sum(p) for p in probabilities if sum(p) > 0]
            tallies[b].counts["unlikely"] += len(probabilities) - len(known)
            if known:
                weights[b, k] = torch.stack(known).mean(0)
        return expected(weights, numbers(labels, request.rubric.name), [tally.note for tally in tallies])


def points(request: Request) -> list[Case]:
    """Every completion that is not empty."""
    return [
        Case((b, k), request.prompts[b], {"completion": text}, request.rows[b])
        for b, texts in enumerate(request.completions)
        for k, text in enumerate(texts)
        if text.strip()
    ]


def expected(weights: Tensor, values: Tensor, notes: Any) -> Verdict:
    """A verdict of distributions over scores.

    Args:
        weights: [B, K, S], NaN where there is no verdict.
        values: [S], the scores.
        notes: of each prompt.
    """
    low, high = values.min(), values.max()
    scores = 2 * ((weights * values).sum(-1) - low) / (high - low) - 1
    beats = (values[:, None] > values[None, :]).double() + 0.5 * (values[:, None] == values[None, :]).double()
    wins = torch.einsum("bis,st,bjt->bij", weights, beats, weights)
    return Verdict(scores.float(), wins.nan_to_num(0.5).clamp(0, 1).float(), notes)


def numbers(labels: Sequence[str], name: str) -> Tensor:
    """The scores that labels are, [S].

    Raises:
        PrefoptError: one is no number, or they are all the same.
    """
    try:
        values = torch.tensor([float(label) for label in labels], dtype=torch.float64)
    except ValueError:
        odd = next(label for label in labels if not _is_number(label))
        raise PrefoptError(f"{name}: labels of scores are numbers; {odd!r} is none") from None
    if len(values.unique()) < 2:
        raise PrefoptError(f"{name}: a scale needs at least two scores; labels: {', '.join(labels) or 'none'}")
    return values


def table(completions: Any, *more: int) -> Tensor:
    """[B, K, …] of NaN, in double precision."""
    width = max((len(texts) for texts in completions), default=0)
    return torch.full((len(completions), width, *more), math.nan, dtype=torch.float64)


def _is_number(label: str) -> bool:
    try:
        float(label)
    except ValueError:
        return False
    return True
