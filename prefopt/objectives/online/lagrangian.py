"""PPO under a constraint on cost."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Self

from prefopt.objectives.online.advantage import episodes, scores_of, with_critic
from prefopt.objectives.online.correction import Tis
from prefopt.objectives.online.kl import Estimator, Placement, check_kl, kl_as_placed
from prefopt.objectives.online.surrogate import (
    clipped_losses,
    ratio_rows,
    rollout_needs,
    row_mean,
    token_ratio,
    token_sums,
    value_loss,
)
from prefopt.support.domains import Finite, NonNegative, Positive, Share
from prefopt.types import Batch, Loss, Needs, Outputs, Targets


@dataclass(frozen=True)
class LagrangianPPO:
    """PPO-Lagrangian, of Safe RLHF: PPO on reward less ν times cost, ν rising while the mean cost is above a threshold.

    L as in `PPO`, with r_t = −β kl_t + 1[t is the last token] · (score − ν cost) / (1 + ν),
    log ν ← log ν + η ν (mean cost − d) after each logical batch, 10⁻⁶ ≤ ν ≤ ν_max

    Safe RLHF writes A = (A_r − ν A_c)/(1 + ν), with a critic for each. GAE is linear in rewards and values, and its KL is given
    to the rewards as −β kl and to the costs as +β kl, so that is the advantage above for V = (V_r − ν V_c)/(1 + ν). The one value
    head is trained to say this V. It knows no values of cost alone, and has to follow ν as ν moves, which two critics need not.
    1 + ν divides the reward and not the KL, so that the fixed point is the constrained optimum at a KL weight of (1 + ν) β, not
    β (experiments/bandit_online measures it). Cost is the column `cost`, [B, K]: above 0 is unsafe. ν is the paper's λ, which
    here is GAE's.

    Source: Dai et al., arXiv 2310.12773v1, eq. 31 for ν, and its code (PKU-Alignment/safe-rlhf, ppo_lag/trainer.py): ν = 1,
    η = 0.1, ν_max = 5, d = 0. There ν follows the mean of the last costs (a window), moves before the update, rewards of tokens are
    clipped, and advantages are not whitened. The rest has PPO's defaults here.

    Attributes:
        beta: β ≥ 0, the weight of the KL.
        multiplier: ν > 0; moved by `adapted`.
        multiplier_lr: η, the learning rate of log ν.
        multiplier_max: ν_max.
        threshold: d, the mean cost that is allowed.
        epsilon: ε, how far a ratio may move.
        gamma: γ.
        lam: λ, of GAE.
        c_v: c_v, the weight of the value loss.
        epsilon_v: ε_v, how far a value may move in an update; None does not clip.
        estimator: of the KL: "k1", "k2", "k3" or "exact".
        placement: of the KL: "reward" or "loss".
        whiten_advantages: to mean 0 and variance 1 over the tokens of the logical batch.
        tis: corrects for the sampler: the largest weight of a token, or a `Correction`; None does not.
    """

    beta: NonNegative = 0.15
    multiplier: Positive = 1.0
    multiplier_lr: NonNegative = 0.1
    multiplier_max: Positive = 5.0
    threshold: Finite = 0.0
    epsilon: Positive = 0.2
    gamma: Share = 1.0
    lam: Share = 0.95
    c_v: NonNegative = 0.1
    epsilon_v: Positive | None = 0.2
    estimator: Estimator = "k1"
    placement: Placement = "reward"
    whiten_advantages: bool = True
    tis: Tis | None = None
    kl = property(kl_as_placed)

    def __post_init__(self) -> None:
        check_kl(self)
        if not 0 < self.multiplier <= self.multiplier_max:
            raise ValueError(
                f"multiplier must be above 0 and at most multiplier_max, got {self.multiplier} and {self.multiplier_max}"
            )

    @property
    def needs(self) -> Needs:
        """As `PPO`, and the column `cost`."""
        needs = rollout_needs(self.kl, "token", self.tis, values=True)
        return replace(needs, columns=("cost", *needs.columns))

    def targets(self, batch: Batch, old: Outputs | None, reference: Outputs | None) -> Targets:
        """Advantages and returns, old log-probs and values, [B, K, T] each."""
        assert old is not None
        cost = batch.columns["cost"].masked_fill(~batch.present, 0)
        mixed = replace(
            batch,
            scores=(scores_of(batch) - self.multiplier * cost) / (1 + self.multiplier),
            rewards=None if batch.rewards is None else batch.rewards / (1 + self.multiplier),
        )
        penalty = self.kl.penalty(batch.mask, old, reference)
        rows, metrics = with_critic(mixed, penalty, old, self.gamma, self.lam, whiten_advantages=self.whiten_advantages)
        rows |= ratio_rows(batch, old, self.tis) | self.kl.rows(reference)
        metrics |= episodes(batch.mask) | self.kl.metrics(old, reference)
        mean = (cost.double().sum() / batch.present.sum().clamp(min=1)).item()
        return Targets(rows, metrics | {"cost/mean": mean, "cost/multiplier": self.multiplier})

    def loss(self, batch: Batch, policy: Outputs, targets: Targets) -> Loss:
        """Shapes: `policy.logps` and `policy.values` are [B, K, T]; the total is [B]."""
        assert policy.values is not None
        rows, ratio = targets.rows, token_ratio(policy, targets)
        actor, metrics = clipped_losses(self.kl, policy, targets, ratio, self.epsilon, self.epsilon)
        critic = value_loss(policy.values, rows["old_values"], rows["returns"], self.epsilon_v)
        metrics |= {"values/loss": row_mean(critic, batch.mask)}
        return Loss(token_sums(actor + self.c_v * critic, batch.mask), metrics)

    def adapted(self, metrics: Mapping[str, float]) -> Self:
        """With ν moved by this batch's mean cost, eq. 31."""
        step = self.multiplier_lr * self.multiplier * (metrics["cost/mean"] - self.threshold)
        log = min(math.log(self.multiplier) + step, math.log(self.multiplier_max))
        return replace(self, multiplier=min(max(math.exp(log), 1e-6), self.multiplier_max))
