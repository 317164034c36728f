"""GRPO done right."""

from dataclasses import dataclass

from prefopt.objectives.online.advantage import Credit, check_credit
from prefopt.objectives.online.correction import Tis
from prefopt.objectives.online.group import centred_targets
from prefopt.objectives.online.kl import Estimator, check_kl, kl_in_loss
from prefopt.objectives.online.surrogate import clipped_losses, needs_per, token_ratio, token_sums
from prefopt.support.domains import NonNegative, Positive
from prefopt.types import Batch, Loss, Outputs, Targets


@dataclass(frozen=True)
class DrGRPO:
    """Dr. GRPO: GRPO without its two divisors, of the reward by its spread and of a completion by its length.

    L = mean over completions of Σ_t [max(−A ρ_t, −A clip(ρ_t, 1 − ε, 1 + ε)) + β kl_t] / length,  A_i = score_i − mean_j score_j

    Shapes as in `GRPO`. `length` is one number for all completions, so that it only scales the learning rate: a token weighs the
    same in short and in long ones. Take the source's max_tokens. A_i is (K − 1)/K times that of `RLOO`. `credit` as in `GRPO`.

    Source: Liu et al., arXiv 2503.20783v2, §3: divided by a constant, the generation budget; no KL (β = 0) in its experiments.
    ε = 0.2 is PPO's.

    Attributes:
        length: what sums over tokens are divided by.
        beta: β ≥ 0, the weight of the KL.
        epsilon: ε, how far a ratio may move.
        estimator: of the KL, which is in the loss: "k1", "k2", "k3" or "exact".
        tis: corrects for the sampler: the largest weight of a token, or a `Correction`; None does not.
        credit: what a token is credited with: "outcome", or "reward_to_go" of the turns.
    """

    length: Positive = 1024.0
    beta: NonNegative = 0.0
    epsilon: Positive = 0.2
    estimator: Estimator = "k3"
    tis: Tis | None = None
    credit: Credit = "outcome"
    kl = property(kl_in_loss)
    needs = needs_per("completion", contrast=True)
    targets = centred_targets

    def __post_init__(self) -> None:
        check_kl(self)
        check_credit(self)
        if not self.length > 0:
            raise ValueError(f"length must be above 0, got {self.length}")

    def loss(self, batch: Batch, policy: Outputs, targets: Targets) -> Loss:
        """Shapes: `policy.logps` is [B, K, T]; the total is [B]."""
        ratio = token_ratio(policy, targets)
        losses, metrics = clipped_losses(self.kl, policy, targets, ratio, self.epsilon, self.epsilon)
        return Loss(token_sums(losses, batch.mask) / self.length, metrics)
