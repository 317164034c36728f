"""GRPO done right."""

from dataclasses import dataclass

from prefopt.objectives.online.advantage import advantage_metrics, centred, episodes, over_tokens, scores_of
from prefopt.objectives.online.kl import KL, Estimator
from prefopt.objectives.online.surrogate import (
    beyond,
    clipped,
    policy_loss,
    ratio_metrics,
    ratio_rows,
    rollout_needs,
    token_ratio,
    token_sums,
)
from prefopt.types import Batch, Loss, Needs, Outputs, Targets


@dataclass(frozen=True)
class DrGRPO:
    """Dr. GRPO: GRPO without its two divisors, of the reward by its spread and of a completion by its length.

    L = mean over completions of Σ_t [max(−A ρ_t, −A clip(ρ_t, 1 − ε, 1 + ε)) + β kl_t] / length,  A_i = score_i − mean_j score_j

    Shapes as in `GRPO`. `length` is one number for all completions, so that it only scales the learning rate: a token weighs the
    same in short and in long ones. Take the source's max_tokens. A_i is (K − 1)/K times that of `RLOO`.

    Source: Liu et al., arXiv 2503.20783v2, §3: divided by a constant, the generation budget; no KL (β = 0) in its experiments.
    ε = 0.2 is PPO's.

    Attributes:
        length: what sums over tokens are divided by.
        beta: β ≥ 0, the weight of the KL.
        epsilon: ε, how far a ratio may move.
        estimator: of the KL, which is in the loss: "k1", "k2", "k3" or "exact".
        tis: the cap of truncated importance sampling; None does not correct for the sampler.
    """

    length: float = 1024.0
    beta: float = 0.0
    epsilon: float = 0.2
    estimator: Estimator = "k3"
    tis: float | None = None

    def __post_init__(self) -> None:
        KL(self.beta, self.estimator, "loss")  # refuses what it does not know
        if not self.length > 0:
            raise ValueError(f"length must be above 0, got {self.length}")

    @property
    def kl(self) -> KL:
        """The KL to the reference."""
        return KL(self.beta, self.estimator, "loss")

    @property
    def needs(self) -> Needs:
        """Scores, the policy before the update, and the reference unless β is 0."""
        return rollout_needs(self.kl, "completion", self.tis)

    def targets(self, batch: Batch, old: Outputs | None, reference: Outputs | None) -> Targets:
        """Advantages and old log-probs, [B, K, T] each."""
        assert old is not None
        advantages = centred(scores_of(batch), batch.present)
        rows = {"advantages": over_tokens(advantages, batch.mask)}
        rows |= ratio_rows(batch, old, self.tis) | self.kl.rows(reference)
        metrics = advantage_metrics(advantages, batch.present) | episodes(batch.mask) | self.kl.metrics(old, reference)
        return Targets(rows, metrics)

    def loss(self, batch: Batch, policy: Outputs, targets: Targets) -> Loss:
        """Shapes: `policy.logps` is [B, K, T]; the total is [B]."""
        advantages, ratio = targets.rows["advantages"], token_ratio(policy, targets)
        surrogate = clipped(ratio, advantages, self.epsilon, self.epsilon)
        losses, metrics = policy_loss(surrogate, self.kl, policy, targets)
        bound = beyond(ratio, advantages, self.epsilon, self.epsilon)
        total = token_sums(losses, batch.mask) / self.length
        return Loss(total, metrics | ratio_metrics(ratio, bound, policy, targets))
