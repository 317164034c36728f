"""What a feedback says of the cases of a benchmark: asked without knowing which answer is right."""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from accelerate import Accelerator

from prefopt.evaluation.benchmarks.cases import Case
from prefopt.feedback import ask
from prefopt.types import Feedback, Verdict


@dataclass(frozen=True)
class Answer:
    """A verdict on one case, the right answers first.

    Attributes:
        scores: [K]; NaN is no verdict.
        wins: [K, K], P(y_i beats y_j), of a feedback that compares; None of one that scores.
        turned: of a judge that was asked in both orders about a pair: the same place won both times.
        cut: how many of the answers were read in part, or with a part of the prompt.
    """

    scores: np.ndarray
    wins: np.ndarray | None = None
    turned: bool = False
    cut: int = 0

    @property
    def missing(self) -> bool:
        """Whether there is an answer without a verdict."""
        return bool(np.isnan(self.scores).any())

    def prefers(self, i: int, j: int) -> float:
        """1 where y_i is preferred to y_j, 0 where y_j is, ½ where neither; NaN without a verdict."""
        if np.isnan(self.scores[[i, j]]).any():
            return float("nan")
        ahead = self.scores[i] - self.scores[j] if self.wins is None else self.wins[i, j] - 0.5
        return float(np.sign(ahead) + 1) / 2


def asked(feedback: Feedback, cases: Sequence[Case], batch_size: int, accelerator: Accelerator) -> Iterator[Answer]:
    """The answers of a feedback to each case, in order.

    It sees the K answers of a case in an order that depends on the case alone: a judge that likes what stands first gains nothing.

    Args:
        feedback: a reward model, a judge, a policy as `ImplicitReward`, or any other.
        cases: to ask about.
        batch_size: cases in one call.
        accelerator: knows the processes.

    Raises:
        PrefoptError: the feedback failed.
    """
    for part in _alike(cases, batch_size):
        orders = [_order(case) for case in part]
        texts = [[case.answers[k] for k in order] for case, order in zip(part, orders, strict=True)]
        columns = [dict(case.columns) for case in part]
        verdict = ask(feedback, "benchmark", [case.prompt for case in part], texts, columns, accelerator).whole()
        for number, order in enumerate(orders):
            yield _answer(verdict, number, np.argsort(order))


def _alike(cases: Sequence[Case], most: int) -> Iterator[list[Case]]:
    """Neighbours with the same number of answers."""
    part: list[Case] = []
    for case in cases:
        if part and (len(part) == most or len(case.answers) != len(part[0].answers)):
            yield part
            part = []
        part.append(case)
    if part:
        yield part


def _order(case: Case) -> list[int]:
    order = list(range(len(case.answers)))
    random.Random("\n".join(sorted(case.answers))).shuffle(order)
    return order


def _answer(verdict: Verdict, number: int, back: np.ndarray) -> Answer:
    scores = verdict.scores[number].double().numpy()[back]
    wins = None if verdict.preference is None else verdict.preference[number].double().numpy()[np.ix_(back, back)]
    note = verdict.notes[number] if verdict.notes else {}
    return Answer(scores, wins, bool(note.get("turned")), int(note.get("cut", 0)))
