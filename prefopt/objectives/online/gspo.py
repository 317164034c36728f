"""Group Sequence Policy Optimization."""

from dataclasses import dataclass

from prefopt.objectives.online.correction import Tis
from prefopt.objectives.online.group import standardised_targets
from prefopt.objectives.online.kl import Estimator, check_kl, kl_in_loss
from prefopt.objectives.online.surrogate import clipped_losses, needs_per, sequence_ratio, token_means
from prefopt.support.domains import NonNegative, Positive
from prefopt.types import Batch, Loss, Outputs, Targets


@dataclass(frozen=True)
class GSPO:
    """Group Sequence Policy Optimization: GRPO with one ratio for a completion, the geometric mean of its tokens'.

    L = mean over completions of max(−A s, −A clip(s, 1 − ε, 1 + ε_high)) + β mean_t kl_t,
    s = (π(y|x) / π_old(y|x))^(1/|y|),  A_i = (score_i − mean_j score_j) / (std_j score_j + e)

    s and A are [B, K]. s is the exponential of a mean, so it stays far nearer to 1 than a token's ratio: its ε are of order 10⁻⁴,
    and at 0.2 hardly anything would be clipped. With `tis` by token, a completion's loss is weighed by the mean of its tokens'
    weights; by `{per: geometric}`, by one that is made as s is.

    Source: Zheng et al., arXiv 2507.18071v2, eq. 5; ε = 0.0003 and ε_high = 0.0004 are those of §5.1. The paper has no KL
    (β = 0) and no e; e = 0.0001 as in `GRPO`.

    Attributes:
        beta: β ≥ 0, the weight of the KL.
        epsilon: ε, how far a ratio may fall.
        epsilon_high: ε_high, how far it may rise.
        e: what is added to the standard deviation.
        estimator: of the KL, which is in the loss: "k1", "k2", "k3" or "exact".
        tis: corrects for the sampler: the largest weight of a token, or a `Correction`; None does not.
    """

    beta: NonNegative = 0.0
    epsilon: Positive = 3e-4
    epsilon_high: Positive = 4e-4
    e: Positive = 1e-4
    estimator: Estimator = "k3"
    tis: Tis | None = None
    kl = property(kl_in_loss)
    needs = needs_per("completion", contrast=True)
    targets = standardised_targets

    def __post_init__(self) -> None:
        check_kl(self)

    def loss(self, batch: Batch, policy: Outputs, targets: Targets) -> Loss:
        """Shapes: `policy.logps` is [B, K, T]; the total is [B]."""
        ratio = sequence_ratio(policy, targets)
        losses, metrics = clipped_losses(self.kl, policy, targets, ratio, self.epsilon, self.epsilon_high)
        return Loss(token_means(losses, batch.mask), metrics)
