"""Listwise Preference Optimization."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import softplus

from prefopt.objectives.maths import better, list_metrics
from prefopt.objectives.parts import log_ratios, reference_sums
from prefopt.support.domains import Positive
from prefopt.types import Batch, Loss, Needs, Outputs, Targets


@dataclass(frozen=True)
class LiPO:
    """LiPO-λ: a logistic loss on every pair of a list, weighted by what a swap of the two would change (LambdaRank).

    L = Σ_{ψ_i > ψ_j} λ_ij log(1 + exp(−(s_i − s_j))),  s = βΔ,  Δ = log π(y|x) − log π_ref(y|x),
    λ_ij = |2^ψ_i − 2^ψ_j| · |1/log(1 + τ_i) − 1/log(1 + τ_j)|

    ψ are the scores and τ the ranks (1 is best) of the current policy's s, without gradient; log-probs are summed over tokens,
    [B, K]. Pairs of equal score and absent completions are left out.

    On the pocket world (experiments/objectives) its gain is not sure in every seed: β = 0.05 hardly holds it near the reference.

    Source: Liu et al., arXiv 2402.01878v3, eq. 8 (LiPO-λ), with its gain 2^ψ − 1 and discount
    log(1 + τ); β = 0.05 is that of its experiments (§5). There ψ is from 0 to 1, a completion's mean chance to win against its
    list. Here scores are taken as they are: 2^ψ asks for numbers of order 1.

    Attributes:
        beta: β.
    """

    beta: Positive = 0.05
    needs = Needs(completions=None, scores=True, reference=True)
    targets = reference_sums

    def loss(self, batch: Batch, policy: Outputs, targets: Targets) -> Loss:
        """Shapes: `policy.logps` is [B, K, T]; the total is [B]."""
        assert batch.scores is not None
        reward = self.beta * log_ratios(policy, targets)  # [B, K]
        gain = torch.where(batch.present, batch.scores, 0).exp2()
        discount = 1 / torch.log1p(_ranks(reward, batch.present))
        weight = (_differences(gain) * _differences(discount)).abs() * better(batch)  # λ, [B, better, worse]
        total = (weight * softplus(-_differences(reward))).sum((1, 2))
        return Loss(total, list_metrics(reward, batch))


def _ranks(scores: Tensor, present: Tensor) -> Tensor:
    """[B, K] from 1, the highest first; absent completions come last."""
    order = scores.detach().masked_fill(~present, -torch.inf).argsort(dim=-1, descending=True, stable=True)
    return order.argsort(-1).to(scores) + 1


def _differences(values: Tensor) -> Tensor:
    """[B, K] to [B, i, j]: value i − value j."""
    return values[:, :, None] - values[:, None, :]
