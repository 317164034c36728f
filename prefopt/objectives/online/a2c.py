"""Advantage actor–critic."""

from dataclasses import dataclass

from prefopt.objectives.online.advantage import episodes, with_critic
from prefopt.objectives.online.kl import Estimator, Placement, check_kl, kl_as_placed
from prefopt.objectives.online.surrogate import (
    policy_loss,
    rollout_needs,
    row_mean,
    score_function,
    token_sums,
    value_loss,
)
from prefopt.support.domains import NonNegative, Share
from prefopt.types import Batch, Loss, Needs, Outputs, Targets


@dataclass(frozen=True)
class A2C:
    """Advantage actor–critic: the plain policy gradient with a critic for a baseline.

    L = mean_t −A_t log π(y_t|x, y_<t) + c_v ½ (V_t − R_t)²,  A = GAE(r, V_old; γ, λ),  R = A + V_old,
    r_t = −β kl_t + 1[t is the last token] · score

    Shapes and KL as in `PPO`. There is no ratio, so a batch is good for one pass: `train.passes: 1` and no minibatches. Its
    gradient is then PPO's, which it is a special case of (arXiv 2205.09123). The value of the first term means nothing.

    Source: Mnih et al., arXiv 1602.01783v2 (A3C), in one process and with GAE, of which λ = 1 is its return to the end of the
    episode. Its entropy bonus is left out. β as in `PPO`.

    Attributes:
        beta: β ≥ 0, the weight of the KL.
        gamma: γ.
        lam: λ, of GAE.
        c_v: c_v, the weight of the value loss.
        estimator: of the KL: "k1", "k2", "k3" or "exact".
        placement: of the KL: "reward" or "loss".
        whiten_advantages: to mean 0 and variance 1 over the tokens of the logical batch.
    """

    beta: NonNegative = 0.15
    gamma: Share = 1.0
    lam: Share = 1.0
    c_v: NonNegative = 1.0
    estimator: Estimator = "k1"
    placement: Placement = "reward"
    whiten_advantages: bool = False
    kl = property(kl_as_placed)

    def __post_init__(self) -> None:
        check_kl(self)

    @property
    def needs(self) -> Needs:
        """As `PPO`."""
        return rollout_needs(self.kl, "token", values=True, one_update=True)

    def targets(self, batch: Batch, old: Outputs | None, reference: Outputs | None) -> Targets:
        """Advantages, returns and old values, [B, K, T] each."""
        assert old is not None
        penalty = self.kl.penalty(batch.mask, old, reference)
        rows, metrics = with_critic(batch, penalty, old, self.gamma, self.lam, whiten_advantages=self.whiten_advantages)
        return Targets(rows | self.kl.rows(reference), metrics | episodes(batch.mask) | self.kl.metrics(old, reference))

    def loss(self, batch: Batch, policy: Outputs, targets: Targets) -> Loss:
        """Shapes: `policy.logps` and `policy.values` are [B, K, T]; the total is [B]."""
        assert policy.logps is not None and policy.values is not None
        rows = targets.rows
        actor, metrics = policy_loss(score_function(policy.logps, rows["advantages"]), self.kl, policy, targets)
        critic = value_loss(policy.values, rows["old_values"], rows["returns"], None)
        metrics |= {"values/loss": row_mean(critic, batch.mask)}
        return Loss(token_sums(actor + self.c_v * critic, batch.mask), metrics)
