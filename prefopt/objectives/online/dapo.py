"""DAPO."""

from dataclasses import dataclass

from prefopt.objectives.online.advantage import Credit, check_credit
from prefopt.objectives.online.correction import Tis
from prefopt.objectives.online.group import credited_targets
from prefopt.objectives.online.kl import Estimator, check_kl, kl_in_loss
from prefopt.objectives.online.surrogate import clipped_losses, needs_per, token_ratio, token_sums
from prefopt.support.domains import NonNegative, Positive
from prefopt.types import Batch, Loss, Outputs, Targets


@dataclass(frozen=True)
class DAPO:
    """DAPO: GRPO with a wider clip above than below, and every token of the batch weighed alike.

    L = mean over tokens of max(−A ρ_t, −A clip(ρ_t, 1 − ε, 1 + ε_high)) + β kl_t,
    A_i = (score_i − mean_j score_j) / (std_j score_j + e)

    Shapes as in `GRPO`. The mean is over the tokens of the logical minibatch on all processes, never of a micro-batch. Leaving out
    prompts whose scores are all equal (dynamic sampling) is the source's matter, and the penalty for overlong completions is
    the feedback's.

    Source: Yu et al., arXiv 2503.14476v2: ε = 0.2, ε_high = 0.28, no KL (β = 0). e = 0.0001 as in `GRPO`; the
    paper has none.

    Attributes:
        beta: β ≥ 0, the weight of the KL.
        epsilon: ε, how far a ratio may fall.
        epsilon_high: ε_high, how far it may rise.
        e: what is added to the standard deviation.
        estimator: of the KL, which is in the loss: "k1", "k2", "k3" or "exact".
        tis: corrects for the sampler: the largest weight of a token, or a `Correction`; None does not.
        credit: what a token is credited with: "outcome", or "reward_to_go" of the turns, as in `GRPO`.
    """

    beta: NonNegative = 0.0
    epsilon: Positive = 0.2
    epsilon_high: Positive = 0.28
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
        ratio = token_ratio(policy, targets)
        losses, metrics = clipped_losses(self.kl, policy, targets, ratio, self.epsilon, self.epsilon_high)
        return Loss(token_sums(losses, batch.mask), metrics)
