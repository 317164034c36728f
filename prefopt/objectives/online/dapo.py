"""DAPO."""

from dataclasses import dataclass

from prefopt.objectives.online.advantage import advantage_metrics, episodes, over_tokens, scores_of, standardised
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
        tis: the cap of truncated importance sampling; None does not correct for the sampler.
    """

    beta: float = 0.0
    epsilon: float = 0.2
    epsilon_high: float = 0.28
    e: float = 1e-4
    estimator: Estimator = "k3"
    tis: float | None = None

    def __post_init__(self) -> None:
        KL(self.beta, self.estimator, "loss")  # refuses what it does not know

    @property
    def kl(self) -> KL:
        """The KL to the reference."""
        return KL(self.beta, self.estimator, "loss")

    @property
    def needs(self) -> Needs:
        """Scores, the policy before the update, and the reference unless β is 0."""
        return rollout_needs(self.kl, "token", self.tis)

    def targets(self, batch: Batch, old: Outputs | None, reference: Outputs | None) -> Targets:
        """Advantages and old log-probs, [B, K, T] each."""
        assert old is not None
        advantages = standardised(scores_of(batch), batch.present, self.e)
        rows = {"advantages": over_tokens(advantages, batch.mask)}
        rows |= ratio_rows(batch, old, self.tis) | self.kl.rows(reference)
        metrics = advantage_metrics(advantages, batch.present) | episodes(batch.mask) | self.kl.metrics(old, reference)
        return Targets(rows, metrics)

    def loss(self, batch: Batch, policy: Outputs, targets: Targets) -> Loss:
        """Shapes: `policy.logps` is [B, K, T]; the total is [B]."""
        advantages, ratio = targets.rows["advantages"], token_ratio(policy, targets)
        surrogate = clipped(ratio, advantages, self.epsilon, self.epsilon_high)
        losses, metrics = policy_loss(surrogate, self.kl, policy, targets)
        bound = beyond(ratio, advantages, self.epsilon, self.epsilon_high)
        return Loss(token_sums(losses, batch.mask), metrics | ratio_metrics(ratio, bound, policy, targets))
