"""Win rates: how often a judge prefers the policy's samples to those of another model on the same prompts, also at equal length."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from accelerate import Accelerator
from scipy.optimize import minimize
from scipy.special import expit
from torch import Tensor

from prefopt.data import Example, Tokenised
from prefopt.feedback import ask
from prefopt.support.json_values import json_values
from prefopt.types import Feedback, Prompt

TIE = 1e-6
"""A probability that is no further than this from ½ counts as a tie."""

PRIOR = (10.0, 2.5)
"""Standard deviations of the normal prior of θ and φ: it keeps both finite where the longer sample, or the policy, always wins, and
hardly matters from a hundred verdicts on. The scales are those of Gelman et al. (2008), https://doi.org/10.1214/08-AOAS191, for
such inputs."""


class Sample(NamedTuple):
    """A completion, and whether it came to an end by itself."""

    text: str
    ended: bool


@dataclass(frozen=True)
class Contest:
    """Who judges, and which samples the policy's are compared with.

    Attributes:
        judge: is given both samples as one group of two. Where it compares, its preference is P(mine beats theirs); where it
            scores, the higher score wins.
        others: another run's samples, by `key` of their prompt; None for samples of the reference.
    """

    judge: Feedback
    others: Mapping[str, Sequence[Sample]] | None = None


def key(prompt: Prompt, task: Any = None) -> str:
    """A prompt, with its `task` where it has one, as a name: the same before and after it has been in a file."""
    asked = prompt if task is None else [prompt, json_values(task)]
    return json.dumps(asked, sort_keys=True, ensure_ascii=False)


def key_of(example: Example) -> str:
    """The `key` of a row."""
    return key(example.prompt, example.columns.get("task"))


def key_of_sample(sample: Mapping[str, Any]) -> str:
    """The `key` of the row of a sample that an evaluation kept."""
    return key(sample["prompt"], sample.get("task"))


def contest(
    judge: Feedback | None, others: Mapping[str, Sequence[Sample]] | None, part: str = "test"
) -> Contest | None:
    """The comparison on a part of the data.

    None where there is no judge; and where samples of another run are compared with, on every part but the test rows, since a run
    keeps its samples of those alone.

    Args:
        judge: the recipe's `evaluate.judge`.
        others: samples of another run on test rows, by `key` of their prompt; None for those of the reference.
        part: of the data.
    """
    if judge is None or (others is not None and part != "test"):
        return None
    return Contest(judge, others)


def wins(
    judge: Feedback,
    rows: Sequence[Tokenised],
    mine: Sequence[Sequence[Sample]],
    theirs: Sequence[Sequence[Sample]],
    accelerator: Accelerator,
) -> Tensor:
    """[B, K] P(mine beats theirs): 1, ½ or 0 from a judge that scores; NaN where there is no verdict, or no sample of theirs.

    The k-th samples are compared; where theirs are fewer, they are used again in order. Two equal texts are a tie, and the judge
    is not asked.

    Args:
        judge: asked once, for all pairs.
        rows: B prompts.
        mine: K samples of each.
        theirs: any number of samples of each.
        accelerator: knows the processes.
    """
    probabilities = torch.full((len(mine), len(mine[0]) if mine else 0), float("nan"), dtype=torch.float64)
    asked: list[tuple[int, int, Sample, Sample]] = []
    for b, (own, other) in enumerate(zip(mine, theirs, strict=True)):
        for k, sample in enumerate(own if other else ()):
            against = other[k % len(other)]
            if sample.text == against.text:
                probabilities[b, k] = 0.5
            else:
                asked.append((b, k, sample, against))
    if asked:
        examples = [rows[b].example for b, *_ in asked]
        columns = [
            {**e.columns, "ended": [one.ended, two.ended]} for e, (_, _, one, two) in zip(examples, asked, strict=True)
        ]
        texts = [[one.text, two.text] for _, _, one, two in asked]
        verdict = ask(judge, "evaluate.judge", [e.prompt for e in examples], texts, columns, accelerator).whole()
        scores = verdict.scores.double().cpu()
        won = ((scores[:, 0] - scores[:, 1]).sign() + 1) / 2
        if verdict.preference is not None:
            won = verdict.preference[:, 0, 1].double().cpu()
        won = won.masked_fill(scores.isnan().any(1), float("nan"))  # the sign of NaN is 0, which is no tie
        probabilities[[b for b, *_ in asked], [k for _, k, *_ in asked]] = won
    return probabilities


def rates(won: Tensor, longer: Tensor) -> dict[str, Tensor]:
    """The metrics of each comparison, [B, K] each; their means are reported.

    Args:
        won: [B, K] P(mine beats theirs); NaN stays NaN.
        longer: [B, K] by how many characters mine is longer.
    """
    known = ~won.isnan()
    controlled = torch.full_like(won, float("nan"))
    if known.any():
        controlled[known] = torch.from_numpy(length_controlled(won[known].numpy(), longer[known].double().numpy()))
    ties = ((won - 0.5).abs() < TIE).double().masked_fill(~known, float("nan"))
    return {"win_rate": won, "win_rate_length_controlled": controlled, "ties": ties}


def length_controlled(won: np.ndarray, longer: np.ndarray) -> np.ndarray:
    """[n] values whose mean is the win rate at equal length, and whose spread is its sampling error.

    P(mine beats theirs) = σ(θ + φ tanh(δ / sd(δ))), δ the difference in length; the win rate at equal length is σ(θ).

    This is AlpacaEval's regression with lengths in characters, without three of its parts: the difficulty of each instruction,
    which needs verdicts on many models; the answers that it cuts or pads on purpose; and its L1 penalty, which `PRIOR` replaces.
    Where wins are probabilities, the regression minimises their cross-entropy.

    Only length is controlled for, and only in this form: whatever else the judge likes about long answers still counts. Each value
    is σ(θ) plus n times the change that one comparison makes to it (the infinitesimal jackknife, Jaeckel 1972), with sd(δ) held
    fixed, so that the values can be resampled and paired by prompt like those of any mean.

    Source: Dubois et al., arXiv 2404.04475; github.com/tatsu-lab/alpaca_eval, metrics/glm_winrate.py.

    Args:
        won: [n] P(mine beats theirs).
        longer: [n] δ.
    """
    spread = longer.std() or 1.0
    inputs = np.stack([np.ones_like(won), np.tanh(longer / spread)], axis=1)  # [n, 2]
    shrink = np.array(PRIOR) ** -2

    def loss(weights: np.ndarray) -> float:
        logits = inputs @ weights
        return float((np.logaddexp(0, logits) - won * logits).sum() + (shrink * weights**2).sum() / 2)

    def gradient(weights: np.ndarray) -> np.ndarray:
        return inputs.T @ (expit(inputs @ weights) - won) + shrink * weights

    def hessian(weights: np.ndarray) -> np.ndarray:
        p = expit(inputs @ weights)
        return (inputs.T * (p * (1 - p))) @ inputs + np.diag(shrink)

    weights = minimize(loss, np.zeros(2), jac=gradient, hess=hessian, method="trust-exact", options={"gtol": 1e-9}).x
    errors = (won - expit(inputs @ weights))[:, None] * inputs - shrink * weights / len(won)  # sums to 0 at the optimum
    moved = len(won) * np.linalg.solve(hessian(weights), errors.T)[0]
    rate = expit(weights[0])
    return rate + rate * (1 - rate) * moved
