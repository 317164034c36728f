"""CISPO."""

from dataclasses import dataclass

from prefopt.objectives.online.advantage import Credit, check_credit
from prefopt.objectives.online.correction import Tis
from prefopt.objectives.online.group import credited_targets
from prefopt.objectives.online.kl import Estimator, check_kl, kl_in_loss
from prefopt.objectives.online.surrogate import (
    clipped_weight,
    needs_per,
    policy_loss,
    ratio_metrics,
    score_function,
    token_ratio,
    token_sums,
)
from prefopt.support.domains import NonNegative, Positive
from prefopt.types import Batch, Loss, Outputs, Targets


@dataclass(frozen=True)
class CISPO:
    """CISPO: a policy gradient whose importance weights are clipped, so that no token's gradient is dropped.

    L = mean over tokens of −sg(clip(ρ_t, 1 − ε, 1 + ε_high)) A log π(y_t|x, y_<t) + β kl_t,
    A_i = (score_i − mean_j score_j) / (std_j score_j + e)

    Shapes as in `GRPO`; sg stops the gradient. PPO's clip removes tokens that have moved far, of which many are rare and decisive;
    here they keep a bounded weight. In the first update this has DAPO's gradient. The value of the first term means nothing.
    `ratio/clipped` counts weights at a bound.

    Source: MiniMax-M1, arXiv 2506.13585v1, §3.1: no lower bound, no KL (β = 0), the upper bound tuned but not given. 1 + ε_high = 5
    is that of ScaleRL (arXiv 2510.13786), which TRL's documentation recommends; TRL's `epsilon_high` is our 1 + ε_high.
    e = 0.0001 as in `GRPO`.

    Attributes:
        beta: β ≥ 0, the weight of the KL.
        epsilon: ε, how far a weight may fall below 1; None is no bound.
        epsilon_high: ε_high, how far it may rise above 1.
        e: what is added to the standard deviation.
        estimator: of the KL, which is in the loss: "k1", "k2", "k3" or "exact".
        tis: corrects for the sampler: the largest weight of a token, or a `Correction`; None does not.
        credit: what a token is credited with: "outcome", or "reward_to_go" of the turns, as in `GRPO`.
    """

    beta: NonNegative = 0.0
    epsilon: Positive | None = None
    epsilon_high: Positive = 4.0
    e: Positive = 1e-4
    estimator: Estimator = "k3"
    tis: Tis | None = None
    credit: Credit = "outcome"
    kl = property(kl_in_loss)
    needs = needs_per("token", contrast=True)
    targets = credited_targets

    def __post_init__(self) -> None:
        check_kl(self)
        check_credit(self)

    def loss(self, batch: Batch, policy: Outputs, targets: Targets) -> Loss:
        """Shapes: `policy.logps` is [B, K, T]; the total is [B]."""
        assert policy.logps is not None
        ratio = token_ratio(policy, targets)
        weight = clipped_weight(ratio, self.epsilon, self.epsilon_high)
        surrogate = score_function(policy.logps, weight * targets.rows["advantages"])
        losses, metrics = policy_loss(surrogate, self.kl, policy, targets)
        metrics |= ratio_metrics(ratio, weight != ratio, policy, targets)
        return Loss(token_sums(losses, batch.mask), metrics)
