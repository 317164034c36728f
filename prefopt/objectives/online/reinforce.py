"""REINFORCE with a running mean for a baseline."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Self

import torch

from prefopt.objectives.online.advantage import (
    Credit,
    advantage_metrics,
    check_credit,
    completion_rewards,
    credited,
    episodes,
)
from prefopt.objectives.online.correction import Tis
from prefopt.objectives.online.kl import Estimator, Placement, check_kl, kl_as_placed
from prefopt.objectives.online.surrogate import policy_loss, rollout_needs, sampler_rows, score_function, token_sums
from prefopt.support.domains import Finite, NonNegative
from prefopt.types import Batch, Loss, Needs, Outputs, Targets


@dataclass(frozen=True)
class REINFORCE:
    """REINFORCE: the plain policy gradient of whole completions, against the mean reward so far.

    L = mean over completions of −(R − b) log π(y|x),  R = score − β Σ_t kl_t,  b = the mean R of all earlier batches

    Log-probs are summed over tokens, R is [B, K]. b is 0 in the first batch, and a batch is never its own baseline, so that the
    gradient is unbiased. There is no ratio, so a batch is good for one pass: `train.passes: 1` and no minibatches. The value of the
    loss means nothing. The KL as in `PPO`.

    With `credit="reward_to_go"`, L = mean over completions of −Σ_t (R_t − b) log π(y_t|x, y_<t),  R_t = Σ_{s≥t} r_s,
    r_t = reward_t − β kl_t + 1[t is the last token] · score: a token is not credited with what turns before it earned, nor with
    their KL. The gradient has the same expectation, since nothing that is written later changes what came before.

    Source: Williams 1992, as in Ahmadian et al., arXiv 2402.14740v2 (REINFORCE with the moving-average baseline b_MA, a
    completion being one action). β = 0.05 is TRL's for RLOO.

    Attributes:
        beta: β ≥ 0, the weight of the KL.
        estimator: of the KL: "k1", "k2", "k3" or "exact".
        placement: of the KL: "reward" or "loss".
        baseline: b; moved by `adapted`.
        seen: how many completions b is the mean of; moved by `adapted`.
        credit: what a token is credited with: "outcome", or "reward_to_go".
        tis: corrects for the sampler: the largest weight of a token, or a `Correction`; None does not.
    """

    beta: NonNegative = 0.05
    estimator: Estimator = "k1"
    placement: Placement = "reward"
    baseline: Finite = 0.0
    seen: NonNegative = 0.0
    credit: Credit = "outcome"
    tis: Tis | None = None
    kl = property(kl_as_placed)

    def __post_init__(self) -> None:
        check_kl(self)
        check_credit(self)

    @property
    def needs(self) -> Needs:
        """Scores; the reference and the policy before the update unless β is 0; with `tis` the latter."""
        return rollout_needs(self.kl, "completion", self.tis, old=self.kl.used or self.tis is not None, one_update=True)

    def targets(self, batch: Batch, old: Outputs | None, reference: Outputs | None) -> Targets:
        """The advantages, [B, K, T]."""
        penalty = self.kl.penalty(batch.mask, old, reference)
        earned = completion_rewards(batch, penalty)
        advantages = torch.where(batch.mask, credited(batch, penalty, self.credit) - self.baseline, 0)
        seen = self.seen + batch.present.sum().item()
        mean = (self.seen * self.baseline + earned[batch.present].double().sum().item()) / max(seen, 1)
        relative = torch.where(batch.present, earned - self.baseline, 0)
        metrics = advantage_metrics(relative, batch.present) | {"baseline/mean": mean, "baseline/seen": seen}
        rows = {"advantages": advantages} | sampler_rows(batch, old, self.tis) | self.kl.rows(reference)
        return Targets(rows, metrics | episodes(batch.mask) | self.kl.metrics(old, reference))

    def loss(self, batch: Batch, policy: Outputs, targets: Targets) -> Loss:
        """Shapes: `policy.logps` is [B, K, T]; the total is [B]."""
        assert policy.logps is not None
        surrogate = score_function(policy.logps, targets.rows["advantages"])
        losses, metrics = policy_loss(surrogate, self.kl, policy, targets)
        return Loss(token_sums(losses, batch.mask), metrics)

    def adapted(self, metrics: Mapping[str, float]) -> Self:
        """With this batch's rewards in the running mean."""
        return replace(self, baseline=metrics["baseline/mean"], seen=metrics["baseline/seen"])
