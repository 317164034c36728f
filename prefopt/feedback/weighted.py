"""Several rewards of one completion, summed by weights and kept apart by name."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from prefopt.feedback.ensemble import notes_of, verdicts_of
from prefopt.feedback.verdicts import combined_steps
from prefopt.support.domains import Finite
from prefopt.types import Completion, Feedback, Prompt, Verdict


@dataclass(frozen=True)
class WeightedSum:
    """Several rewards of one completion: Σ_m w_m r_m is its score, and each r_m, steps included, is a named score.

    An `Ensemble` has several opinions of one thing; this has several things, such as whether an answer is right, whether it is
    short, and whether a judge likes it. Whatever learns from scores learns from the sum; `GDPO` reads the named ones and
    normalises them apart.

    A completion on which a member has no verdict has no sum, and has the other named scores. `steps` are summed by the same
    weights and stay where they are; the named score of a member that gives them, such as `EnvironmentReward`, is its score and
    their sum. Named scores that a member gives itself are left out.

    Attributes:
        weights: a name and w_m for each member, in their order: {right: 1, short: 0.2}.
        members: any feedbacks.

    Raises:
        ValueError: not a weight for each member.
    """

    weights: Mapping[str, Finite]
    members: tuple[Feedback, ...]

    def __post_init__(self) -> None:
        if not self.members or len(self.weights) != len(self.members):
            names = ", ".join(self.weights) or "none"
            raise ValueError(
                f"weights have a name for each member, in their order; there are {len(self.members)} members, and names {names}"
            )

    def __call__(
        self, prompts: Sequence[Prompt], completions: Sequence[Sequence[Completion]], rows: Sequence[Mapping[str, Any]]
    ) -> Verdict:
        """Scores and named scores, [B, K] each.

        Raises:
            PrefoptError: what a member raised, or that it returned something else than B × K numbers; says which member.
        """
        verdicts = verdicts_of(self.members, prompts, completions, rows)
        return Verdict(
            self._summed(torch.stack([verdict.scores.double().cpu() for verdict in verdicts])).float(),
            None,
            [notes_of(verdicts, b) for b in range(len(prompts))],
            combined_steps(verdicts, self._summed),
            {name: _whole(verdict).float() for name, verdict in zip(self.weights, verdicts, strict=True)},
        )

    def _summed(self, scores: Tensor) -> Tensor:
        """[...] of [M, ...]."""
        weights = torch.tensor(list(self.weights.values()), dtype=scores.dtype)
        return torch.tensordot(weights, scores, 1)

    @property
    def parts(self) -> Sequence[Any]:
        """The members."""
        return self.members


def _whole(verdict: Verdict) -> Tensor:
    """[B, K] score + Σ steps of each completion."""
    scores = verdict.scores.double().cpu().clone()
    for b, row in enumerate(verdict.steps or ()):
        scores[b, : len(row)] += torch.tensor([math.fsum(steps) for steps in row]).double()
    return scores
