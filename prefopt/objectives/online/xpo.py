"""Exploratory Preference Optimization."""

from dataclasses import dataclass

import torch
from torch.nn.functional import logsigmoid

from prefopt.objectives.maths import pair_metrics
from prefopt.objectives.online.advantage import came_from, total_scores
from prefopt.objectives.parts import log_ratios, reference_sums
from prefopt.support.domains import NonNegative, Positive
from prefopt.types import Batch, Loss, Needs, Outputs, Targets


@dataclass(frozen=True)
class XPO:
    """Exploratory Preference Optimization: online DPO, and a bonus for being unlike the reference.

    L = −log σ(β(Δ_w − Δ_l)) + α log π(ỹ|x),  Δ = log π(y|x) − log π_ref(y|x)

    Log-probs are summed over tokens, [B, 2]: a completion of the policy, and ỹ, the one whose `origin` is another: the reference.
    The one of higher score is w, the other l; where they tie there is no w, and only the bonus is left. Both are learnt from:
    the writer's completions must be trained.

    Source: Xie et al., arXiv 2405.21046v1, algorithm 1. There the pairs of all earlier batches are kept, and ỹ may be a further
    sample; here, as in TRL, it is the pair's own. β = 0.1 and α = 0.00001 are TRL's, which lets a tie be won by the policy.

    Attributes:
        beta: β, as in DPO.
        alpha: α ≥ 0, the weight of the bonus.
    """

    beta: Positive = 0.1
    alpha: NonNegative = 1e-5
    needs = Needs(completions=2, scores=True, reference=True, rollouts=True, columns=("origin",))

    targets = reference_sums

    def loss(self, batch: Batch, policy: Outputs, targets: Targets) -> Loss:
        """Shapes: `policy.logps` is [B, 2, T]; the total is [B]."""
        reward = self.beta * log_ratios(policy, targets)  # [B, 2]
        scores = total_scores(batch)
        order = (scores[:, 0] - scores[:, 1]).sign()  # +1 where the first one is w, 0 for a tie
        margin = order * (reward[:, 0] - reward[:, 1])
        bonus = (policy.sum() * ~came_from(batch, "policy")).sum(-1)
        preference = torch.where(order == 0, 0, -logsigmoid(margin))
        best = torch.where(order[:, None] < 0, reward.flip(1), reward)
        metrics = {n: v.masked_fill(order == 0, torch.nan) for n, v in pair_metrics(best).items()}
        return Loss(preference + self.alpha * bonus, metrics | {"logps/reference": bonus.detach()})
