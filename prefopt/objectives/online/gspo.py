"""Group Sequence Policy Optimization."""

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
    sequence_ratio,
    token_means,
)
from prefopt.types import Batch, Loss, Needs, Outputs, Targets


@dataclass(frozen=True)
class GSPO:
    """Group Sequence Policy Optimization: GRPO with one ratio for a completion, the geometric mean of its tokens'.

    L = mean over completions of max(−A s, −A clip(s, 1 − ε, 1 + ε_high)) + β mean_t kl_t,
    s = (π(y|x) / π_old(y|x))^(1/|y|),  A_i = (score_i − mean_j score_j) / (std_j score_j + e)

    s and A are [B, K]. s is the exponential of a mean, so it stays far nearer to 1 than a token's ratio: its ε are of order 10⁻⁴,
    and at 0.2 hardly anything would be clipped. With `tis`, a completion's loss is weighed by the mean of its tokens' weights.

    Source: Zheng et al., arXiv 2507.18071v2, eq. 5; ε = 0.0003 and ε_high = 0.0004 are those of §5.1. The paper has no KL
    (β = 0) and no e; e = 0.0001 as in `GRPO`.

    Attributes:
        beta: β ≥ 0, the weight of the KL.
        epsilon: ε, how far a ratio may fall.
        epsilon_high: ε_high, how far it may rise.
        e: what is added to the standard deviation.
        estimator: of the KL, which is in the loss: "k1", "k2", "k3" or "exact".
        tis: the cap of truncated importance sampling; None does not correct for the sampler.
    """

    beta: float = 0.0
    epsilon: float = 3e-4
    epsilon_high: float = 4e-4
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
        return rollout_needs(self.kl, "completion", self.tis)

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
        advantages, ratio = targets.rows["advantages"], sequence_ratio(policy, targets)
        surrogate = clipped(ratio, advantages, self.epsilon, self.epsilon_high)
        losses, metrics = policy_loss(surrogate, self.kl, policy, targets)
        bound = beyond(ratio, advantages, self.epsilon, self.epsilon_high)
        return Loss(token_means(losses, batch.mask), metrics | ratio_metrics(ratio, bound, policy, targets))
