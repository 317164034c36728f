"""Win rates: does a judge prefer the policy's samples to somebody else's on the same prompts? Also at equal length."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from accelerate import Accelerator
from scipy.optimize import minimize
from scipy.special import expit
from torch import Tensor

from prefopt.data import Tokenised
from prefopt.feedback import ask
from prefopt.types import Feedback, Prompt

TIE = 1e-6
"""Within so much of ½ neither wins."""

PRIOR = (10.0, 2.5)
"""Standard deviations of θ and φ beforehand: they keep both finite where the longer, or the policy, always wins, and are nothing
beside a hundred verdicts. The scales are those of Gelman et al. (2008), https://doi.org/10.1214/08-AOAS191, for such inputs."""


class Sample(NamedTuple):
    """A completion, and whether it came to an end by itself."""

    text: str
    ended: bool


@dataclass(frozen=True)
class Contest:
    """Who judges, and whom the policy's samples meet.

    Attributes:
        judge: sees both samples as one group of two. One that compares says P(mine beats theirs), in whatever orders it
            asks; of one that scores, the higher score wins.
        others: another run's samples, by `key` of their prompt; None for samples of the reference.
    """

    judge: Feedback
    others: Mapping[str, Sequence[Sample]] | None = None


def key(prompt: Prompt) -> str:
    """A prompt as a name, the same before and after it has been in a file."""
    return json.dumps(prompt, sort_keys=True, ensure_ascii=False)


def contest(
    judge: Feedback | None, others: Mapping[str, Sequence[Sample]] | None, part: str = "test"
) -> Contest | None:
    """Who compares samples on a part of the data with whose.

    None where nobody judges, and on other parts than the test rows with another run, which has kept no samples of those.

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
    """[B, K] P(mine beats theirs), 1, ½ or 0 from a judge that scores; NaN where there is no verdict or nothing of theirs.

    The k-th samples meet; where theirs are fewer, they start again. Two equal texts are a tie, and nobody is asked.

    Args:
        judge: asked once, for all pairs.
        rows: B prompts.
        mine: K samples of each.
        theirs: any number of samples of each.
        accelerator: knows the processes.
    """
    found = torch.full((len(mine), len(mine[0]) if mine else 0), float("nan"), dtype=torch.float64)
    asked: list[tuple[int, int, Sample, Sample]] = []
    for b, (own, other) in enumerate(zip(mine, theirs, strict=True)):
        for k, sample in enumerate(own if other else ()):
            against = other[k % len(other)]
            if sample.text == against.text:
                found[b, k] = 0.5
            else:
                asked.append((b, k, sample, against))
    if asked:
        examples = [rows[b].example for b, *_ in asked]
        columns = [
            {**e.columns, "ended": [one.ended, two.ended]} for e, (_, _, one, two) in zip(examples, asked, strict=True)
        ]
        texts = [[one.text, two.text] for _, _, one, two in asked]
        verdict = ask(judge, "evaluate.judge", [e.prompt for e in examples], texts, columns, accelerator)
        scores = verdict.scores.double().cpu()
        won = ((scores[:, 0] - scores[:, 1]).sign() + 1) / 2
        if verdict.preference is not None:
            won = verdict.preference[:, 0, 1].double().cpu()
        won = won.masked_fill(scores.isnan().any(1), float("nan"))  # the sign of NaN is 0, which is no tie
        found[[b for b, *_ in asked], [k for _, k, *_ in asked]] = won
    return found


def rates(won: Tensor, longer: Tensor) -> dict[str, Tensor]:
    """What is to be observed of each comparison, [B, K] each; means of them are the metrics.

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

    That is AlpacaEval's regression, lengths in characters, less what a single contest cannot have or does not need: the term for
    each instruction's difficulty, which comes from the verdicts on many models; answers cut or padded on purpose, which it adds;
    and an L1 penalty, in whose place there is `PRIOR`. Where wins are probabilities, their cross-entropy is what is least.

    Length is all that is controlled for, and in this form only: whatever else the judge likes about long answers still counts.
    Each value is σ(θ) plus n times what one comparison moves it by (the infinitesimal jackknife, Jaeckel 1972), with sd(δ) held
    fixed, so that they can be resampled, and paired by prompt, like those of any mean.

    Source: Dubois et al., arXiv 2404.04475; github.com/tatsu-lab/alpaca_eval, metrics/glm_winrate.py.

    Args:
        won: [n] P(mine beats theirs).
        longer: [n] δ.
    """
    spread = longer.std() or 1.0
    inputs = np.stack([np.ones_like(won), np.tanh(longer / spread)], axis=1)  # [n, 2]
    shrink = np.array(PRIOR) ** -2

    def loss(weights: np.ndarray) -> float:
        said = inputs @ weights
        return float((np.logaddexp(0, said) - won * said).sum() + (shrink * weights**2).sum() / 2)

    def slope(weights: np.ndarray) -> np.ndarray:
        return inputs.T @ (expit(inputs @ weights) - won) + shrink * weights

    def bend(weights: np.ndarray) -> np.ndarray:
        p = expit(inputs @ weights)
        return (inputs.T * (p * (1 - p))) @ inputs + np.diag(shrink)

    weights = minimize(loss, np.zeros(2), jac=slope, hess=bend, method="trust-exact", options={"gtol": 1e-9}).x
    errors = (won - expit(inputs @ weights))[:, None] * inputs - shrink * weights / len(won)  # sums to 0 at the optimum
    moved = len(won) * np.linalg.solve(bend(weights), errors.T)[0]
    rate = expit(weights[0])
    return rate + rate * (1 - rate) * moved
