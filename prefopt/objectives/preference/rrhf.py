"""Rank Responses to align with Human Feedback."""

from dataclasses import dataclass

import torch

from prefopt.objectives.maths import better, list_metrics
from prefopt.objectives.parts import nothing
from prefopt.support.domains import NonNegative
from prefopt.types import Batch, Loss, Needs, Outputs, Targets


@dataclass(frozen=True)
class RRHF:
    """RRHF: a hinge without margin on every pair of a list that is in the wrong order, and imitation of the best.

    L = Σ_{r_i < r_j} max(0, l̄_i − l̄_j) − w log π(y_best|x),  l̄ = mean over tokens of log π(y_t|x, y_<t)

    r are the scores and l̄ is [B, K]; completions of equal score make no pair, absent ones none. The best has the highest score,
    the first of these on a tie; its log-prob is the sum over its tokens.

    Source: Yuan et al., arXiv 2304.05302v3 (L_rank and L_ft), unweighted as there: w = 1. The official code
    (GanjinZero/RRHF, train.py) differs: it weighs L_rank by 100 and takes L_ft as a mean over all positions, prompt and padding
    included. Beside a hinge of means, a sum over tokens weighs heavily: w is the field to tune.

    Attributes:
        weight: w, of imitation.
    """

    weight: NonNegative = 1.0
    needs = Needs(completions=None, scores=True)
    targets = nothing

    def loss(self, batch: Batch, policy: Outputs, targets: Targets) -> Loss:
        """Shapes: `policy.logps` is [B, K, T]; the total is [B]."""
        assert batch.scores is not None
        mean = policy.mean()  # [B, K]
        wrong = (mean[:, None, :] - mean[:, :, None]).relu() * better(batch)  # [B, better, worse]
        best = batch.scores.masked_fill(~batch.present, -torch.inf).argmax(-1, keepdim=True)
        total = wrong.sum((1, 2)) - self.weight * policy.sum().gather(-1, best)[:, 0]
        return Loss(total, list_metrics(mean, batch))
