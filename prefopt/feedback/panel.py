"""Several judges as one."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from prefopt.feedback.ensemble import notes_of, verdicts_of
from prefopt.feedback.verdicts import combined_named, combined_steps
from prefopt.support.errors import PrefoptError
from prefopt.types import Completion, Feedback, Prompt, Verdict


@dataclass(frozen=True)
class Panel:
    """One verdict of several judges' P_m(y_i beats y_j), and how far they disagree.

    mean:       P = mean of P_m; scores are the mean of theirs, so they should be on one scale
    majority:   P = 1, ½ or 0, as more, as many or fewer of them prefer y_i (P_m > ½; a P_m of ½ is half a vote)
    agreement:  P = Σ_m w_m P_m, with w_m ∝ a_m, the share of this call's pairs on which m and the others, one by one, prefer
                the same: who agrees with nobody counts for nothing, and if that is everyone, all count alike

    With the latter two, scores are the mean over the others of P, so they need two completions of each prompt. A judge that gives
    scores alone prefers the larger. On a pair or a completion, those vote who have a verdict; it has none only where nobody has.

    Named scores are means over the members that have one for a completion; `steps` are means over all members, where one that gives
    none gives 0 to each.

    Each prompt's note has `disagreement`, the share of (pair of judges, pair of completions) on which the judges prefer
    differently, `weights`, and the `members`' notes, where they have any.

    Attributes:
        members: any feedbacks, at least two.
        combine: mean, majority or agreement.

    Raises:
        ValueError: fewer than two members.
    """

    members: tuple[Feedback, ...]
    combine: Literal["mean", "majority", "agreement"] = "mean"

    def __post_init__(self) -> None:
        if len(self.members) < 2:
            raise ValueError(f"a panel has at least two members, not {len(self.members)}")

    def __call__(
        self, prompts: Sequence[Prompt], completions: Sequence[Sequence[Completion]], rows: Sequence[Mapping[str, Any]]
    ) -> Verdict:
        """Scores [B, K] and preference [B, K, K].

        Raises:
            PrefoptError: what a member raised; or there is nothing to vote on, with a single completion.
        """
        if self.combine != "mean" and completions and max(map(len, completions)) < 2:
            raise PrefoptError(
                f"a panel's {self.combine} needs at least two completions of each prompt, or combine: mean"
            )
        verdicts = verdicts_of(self.members, prompts, completions, rows)
        wins = torch.stack([_wins(verdict) for verdict in verdicts])  # [M, B, K, K], NaN where there is no verdict
        votes = _votes(wins - 0.5)
        weights = (
            _weights(votes) if self.combine == "agreement" else torch.full((len(verdicts),), 1 / len(verdicts)).double()
        )
        combined = _weighted(votes if self.combine == "majority" else wins, weights)
        if self.combine == "majority":
            combined = _votes(combined - 0.5)
        scores = torch.stack([verdict.scores.double().cpu() for verdict in verdicts])
        return Verdict(
            (scores.nanmean(0) if self.combine == "mean" else combined.nanmean(-1)).float(),
            combined.nan_to_num(0.5).clamp(0, 1).float(),
            [self._note(verdicts, _disagreement(votes[:, b]), weights, b) for b in range(len(prompts))],
            combined_steps(verdicts, partial(torch.mean, dim=0)),
            combined_named(verdicts, partial(torch.nanmean, dim=0)),
        )

    def _note(self, verdicts: Sequence[Verdict], disagreement: float, weights: Tensor, b: int) -> dict[str, Any]:
        note: dict[str, Any] = {"weights": weights.tolist()}
        if not math.isnan(disagreement):
            note["disagreement"] = disagreement
        return note | notes_of(verdicts, b)

    @property
    def parts(self) -> Sequence[Any]:
        """The members."""
        return self.members


def _wins(verdict: Verdict) -> Tensor:
    """P [B, K, K] of a member, or what its scores prefer; NaN on the diagonal and where a completion has no verdict."""
    scores = verdict.scores.double().cpu()
    gap = scores[:, :, None] - scores[:, None, :]  # NaN where either is
    wins = _votes(gap) if verdict.preference is None else verdict.preference.double().cpu() + 0 * gap
    return wins.masked_fill(torch.eye(wins.shape[-1], dtype=torch.bool), math.nan)


def _votes(gap: Tensor) -> Tensor:
    """1, ½ or 0 for a gap above, at or below 0; NaN stays NaN, of which torch's sign is 0."""
    return torch.where(gap.isnan(), gap, gap.sign() / 2 + 0.5)


def _weighted(values: Tensor, weights: Tensor) -> Tensor:
    """Mean over members, [M, …] to […], of those that have a value."""
    known = ~values.isnan()
    shares = weights.view(-1, *[1] * (values.ndim - 1)) * known
    total = shares.sum(0)
    # Where only judges without weight have a verdict, there is none.
    return torch.where(total > 0, (shares * values.nan_to_num()).sum(0) / total, math.nan)


def _same(votes: Tensor) -> Tensor:
    """[M, M] share of pairs on which two members vote the same, of those on which both do; NaN for none."""
    pairs = votes.flatten(1)
    both = ~pairs[:, None].isnan() & ~pairs[None].isnan()
    return ((pairs[:, None] == pairs[None]) & both).sum(-1) / both.sum(-1)


def _weights(votes: Tensor) -> Tensor:
    """[M] weights that sum to 1."""
    weights = _same(votes).double().fill_diagonal_(math.nan).nanmean(1).nan_to_num(0)
    return weights / weights.sum() if weights.sum() else torch.full_like(weights, 1 / len(weights))


def _disagreement(votes: Tensor) -> float:
    """Share of pairs of members × pairs of completions on which they differ, of votes [M, K, K]; NaN where no two vote."""
    members = len(votes)
    one, other = torch.triu_indices(members, members, 1)
    pairs = votes.flatten(1)
    both = ~pairs[one].isnan() & ~pairs[other].isnan()
    return float(((pairs[one] != pairs[other]) & both).sum() / both.sum())
