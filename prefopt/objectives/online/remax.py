"""ReMax."""

from dataclasses import dataclass, replace

import torch

from prefopt.objectives.maths import discounted_returns, masked_sum
from prefopt.objectives.online.advantage import (
    advantage_metrics,
    came_from,
    episodes,
    greedy_baseline,
    token_rewards,
)
from prefopt.objectives.online.kl import KL
from prefopt.objectives.online.surrogate import rollout_needs, score_function
from prefopt.support.domains import NonNegative
from prefopt.types import Batch, Loss, Needs, Outputs, Targets


@dataclass(frozen=True)
class ReMax:
    """ReMax: REINFORCE whose baseline is the score of the prompt's greedy completion.

    L = mean over prompts of mean_k Σ_t −(R_t − score(ȳ)) log π(y_t|x, y_<t),
    R_t = Σ_{s≥t} r_s,  r_t = −β kl_t + 1[t is the last token] · score(y),  kl_t = log π_old − log π_ref

    ȳ is the completion whose `origin` is greedy: decoded at temperature 0, scored, and not learnt from. The others, k, are those of
    origin policy. All of [B, K, T]. A prompt without a greedy completion has the baseline 0. There is no ratio, so a batch is
    good for one pass. The value of the loss means nothing.

    Source: Li et al., arXiv 2310.10505v4, algorithm 1. The KL in the reward and the returns from t on are those of its code
    (liziniu/ReMax, on DeepSpeed-Chat); the paper leaves the regularisation to an appendix. β = 0.1 is DeepSpeed-Chat's.

    Attributes:
        beta: β ≥ 0, the weight of the KL.
    """

    beta: NonNegative = 0.1

    def __post_init__(self) -> None:
        KL(self.beta, "k1", "reward")  # refuses what it does not know

    @property
    def kl(self) -> KL:
        """The KL to the reference."""
        return KL(self.beta, "k1", "reward")

    @property
    def needs(self) -> Needs:
        """Scores and origins, one of them greedy; the reference and the policy before the update unless β is 0."""
        return replace(rollout_needs(self.kl, "prompt", old=self.kl.used, one_update=True), columns=("origin",))

    def targets(self, batch: Batch, old: Outputs | None, reference: Outputs | None) -> Targets:
        """The advantages, [B, K, T]; 0 for completions that are not the policy's."""
        own = came_from(batch, "policy")
        mask = batch.mask & own[..., None]
        penalty = self.kl.penalty(mask, old, reference)
        earned = discounted_returns(token_rewards(batch, penalty), mask, 1.0)
        baseline = greedy_baseline(batch)
        advantages = torch.where(mask, earned - baseline[..., None], 0)
        metrics = advantage_metrics(advantages, mask) | episodes(mask) | self.kl.metrics(old, reference)
        return Targets({"advantages": advantages, "own": own}, metrics | {"baseline/mean": baseline.mean().item()})

    def loss(self, batch: Batch, policy: Outputs, targets: Targets) -> Loss:
        """Shapes: `policy.logps` is [B, K, T]; the total is [B]."""
        assert policy.logps is not None
        of_completion = masked_sum(score_function(policy.logps, targets.rows["advantages"]), batch.mask)  # [B, K]
        return Loss(of_completion.sum(-1) / targets.rows["own"].sum(-1).clamp(min=1))
