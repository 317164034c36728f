"""Several feedbacks as one."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from prefopt.feedback.calling import run_feedback
from prefopt.feedback.verdicts import combined_named, combined_steps
from prefopt.support.domains import NonNegative
from prefopt.types import Completion, Feedback, Prompt, Verdict


@dataclass(frozen=True)
class Ensemble:
    """One score of several members' scores r_1 … r_M of a completion.

    mean:  1/M Σ r_i
    min:   min r_i
    lcb:   1/M Σ r_i − λ · 1/M Σ (r_i − r̄)²

    Where members that were trained alike disagree, their scores say little; the latter two are conservative there, against
    over-optimisation. Members should speak on one scale: a reward model's is arbitrary, and a `ReferenceNormalise` in the
    `transforms` of each gives them one. A completion on which a member has no verdict has none, for a minimum over those left would
    be larger. P(y_i beats y_j) is the mean of the members', where all have one. Named scores are combined by the same
    rule, each over the members that give it; so are `steps`, where a member that gives none gives 0 to each.

    Each prompt's note has `std`, K numbers: the standard deviation (population) of the members' scores; and `members`, their notes,
    where they have any.

    Source: Coste et al., arXiv 2310.02743, who call them mean, worst-case and uncertainty-weighted optimisation; their best λ
    depends on how the policy is optimised, so 0.1 is no more than a start. Averaging weights instead, at the cost of
    one model: `RewardModel(average=…)`.

    Attributes:
        members: any feedbacks, at least two.
        combine: mean, min or lcb.
        lam: λ of lcb.

    Raises:
        ValueError: fewer than two members, or no such way to combine them.
    """

    members: tuple[Feedback, ...]
    combine: Literal["mean", "min", "lcb"] = "mean"
    lam: NonNegative = 0.1

    def __post_init__(self) -> None:
        if len(self.members) < 2:
            raise ValueError(f"an ensemble has at least two members, not {len(self.members)}")
        if self.combine not in ("mean", "min", "lcb"):
            raise ValueError(f"combine must be mean, min or lcb, not {self.combine!r}")

    def __call__(
        self, prompts: Sequence[Prompt], completions: Sequence[Sequence[Completion]], rows: Sequence[Mapping[str, Any]]
    ) -> Verdict:
        """Scores [B, K].

        Raises:
            PrefoptError: what a member raised, or that it returned something else than B × K numbers; says which member.
        """
        verdicts = verdicts_of(self.members, prompts, completions, rows)
        scores = torch.stack([verdict.scores.double().cpu() for verdict in verdicts])  # [M, B, K]
        spread = scores.std(0, correction=0)
        preferences = [verdict.preference.cpu() for verdict in verdicts if verdict.preference is not None]
        everywhere = len(preferences) == len(verdicts)
        return Verdict(
            self._combined(scores).float(),
            torch.stack(preferences).mean(0) if everywhere else None,
            [self._note(verdicts, spread[b], b) for b in range(len(prompts))],
            combined_steps(verdicts, self._combined),
            combined_named(verdicts, self._combined),
        )

    def _combined(self, scores: Tensor) -> Tensor:
        """[...] of [M, ...]; NaN where any member is."""
        if self.combine == "min":
            return scores.amin(0)
        mean = scores.mean(0)
        return mean - self.lam * scores.var(0, correction=0) if self.combine == "lcb" else mean

    @staticmethod
    def _note(verdicts: Sequence[Verdict], spread: Tensor, b: int) -> dict[str, Any]:
        return {"std": [None if value != value else value for value in spread.tolist()], **notes_of(verdicts, b)}

    @property
    def parts(self) -> Sequence[Any]:
        """The members."""
        return self.members


def verdicts_of(
    members: Sequence[Feedback],
    prompts: Sequence[Prompt],
    completions: Sequence[Sequence[Completion]],
    rows: Sequence[Mapping[str, Any]],
) -> list[Verdict]:
    """The verdict of each member.

    Raises:
        PrefoptError: what a member raised, or that it returned something else than B × K numbers; says which member.
    """
    return [
        run_feedback(member, f"{type(member).__name__} (member {i + 1})", prompts, completions, rows)
        for i, member in enumerate(members)
    ]


def notes_of(verdicts: Sequence[Verdict], b: int) -> dict[str, Any]:
    """The members' notes on prompt b, where they have any."""
    if not any(verdict.notes for verdict in verdicts):
        return {}
    return {"members": [dict(verdict.notes[b]) if verdict.notes else {} for verdict in verdicts]}
