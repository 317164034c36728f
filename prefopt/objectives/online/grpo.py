"""Group Relative Policy Optimization."""

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
    token_means,
    token_ratio,
)
from prefopt.types import Batch, Loss, Needs, Outputs, Targets


@dataclass(frozen=True)
class GRPO:
    """Group Relative Policy Optimization: PPO's clip, each completion against its prompt's others, no critic.

    L = mean over completions of mean_t [max(−A ρ_t, −A clip(ρ_t, 1 − ε, 1 + ε)) + β kl_t],
    A_i = (score_i − mean_j score_j) / (std_j score_j + e),
    kl_t = π_ref/π − 1 − log(π_ref/π) at the token (k3), or another estimate

    A is [B, K], over the completions that are present, the same at all tokens of one; the rest is [B, K, T]. std is the unbiased
    one, as in TRL and verl. A group whose scores are all equal has A = 0 and only feels the KL, and so does a completion alone.
    Dividing by std weighs prompts of rare success more, and k3 in the loss has the gradient of KL(π_ref‖π) (`online.kl.KL`): the
    optimum is not that of reward − β KL.

    Source: Shao et al., arXiv 2402.03300v3 (DeepSeekMath), eq. 3 and 4, with outcome supervision; β = 0.04 and groups of 64 are
    theirs. ε is not given there; 0.2 is PPO's and TRL's. e is not in the paper: 0.0001 is TRL's, verl has 0.000001. TRL's β is 0 by
    default, and its default loss is DAPO's.

    Attributes:
        beta: β ≥ 0, the weight of the KL.
        epsilon: ε, how far a ratio may move.
        e: what is added to the standard deviation.
        estimator: of the KL, which is in the loss: "k1", "k2", "k3" or "exact".
        tis: the cap of truncated importance sampling; None does not correct for the sampler.
    """

    beta: float = 0.04
    epsilon: float = 0.2
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
        advantages, ratio = targets.rows["advantages"], token_ratio(policy, targets)
        surrogate = clipped(ratio, advantages, self.epsilon, self.epsilon)
        losses, metrics = policy_loss(surrogate, self.kl, policy, targets)
        bound = beyond(ratio, advantages, self.epsilon, self.epsilon)
        return Loss(token_means(losses, batch.mask), metrics | ratio_metrics(ratio, bound, policy, targets))
