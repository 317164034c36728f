"""REINFORCE leave-one-out."""

from dataclasses import dataclass

from prefopt.objectives.online.advantage import (
    advantage_metrics,
    completion_rewards,
    episodes,
    leave_one_out,
    over_tokens,
)
from prefopt.objectives.online.correction import Tis
from prefopt.objectives.online.kl import Estimator, Placement, check_kl, kl_as_placed
from prefopt.objectives.online.surrogate import policy_loss, rollout_needs, sampler_rows, score_function, token_sums
from prefopt.support.domains import NonNegative
from prefopt.types import Batch, Loss, Needs, Outputs, Targets


@dataclass(frozen=True)
class RLOO:
    """REINFORCE leave-one-out: each completion against the mean reward of the prompt's other ones.

    L = mean over completions of −A_i log π(y_i|x),  A_i = R_i − mean_{j≠i} R_j,  R = score − β Σ_t kl_t

    Log-probs are summed over tokens, A is [B, K]. A_i is K/(K − 1) times R_i less the mean of all K. A completion alone has A = 0.
    There is no ratio, so a batch is good for one pass: `train.passes: 1` and no minibatches. The value of the loss means
    nothing. The KL as in `PPO`.

    Source: Ahmadian et al., arXiv 2402.14740v2, after Kool et al. 2019. β = 0.05 is TRL's, which also clips the ratio of
    whole completions (at 0.2): at its first update the two have one gradient.

    Attributes:
        beta: β ≥ 0, the weight of the KL.
        estimator: of the KL: "k1", "k2", "k3" or "exact".
        placement: of the KL: "reward" or "loss".
        tis: corrects for the sampler: the largest weight of a token, or a `Correction`; None does not.
    """

    beta: NonNegative = 0.05
    estimator: Estimator = "k1"
    placement: Placement = "reward"
    tis: Tis | None = None
    kl = property(kl_as_placed)

    def __post_init__(self) -> None:
        check_kl(self)

    @property
    def needs(self) -> Needs:
        """Scores; the reference and the policy before the update unless β is 0; with `tis` the latter."""
        return rollout_needs(
            self.kl, "completion", self.tis, old=self.kl.used or self.tis is not None, one_update=True, contrast=True
        )

    def targets(self, batch: Batch, old: Outputs | None, reference: Outputs | None) -> Targets:
        """The advantages, [B, K, T], the same at every token of a completion."""
        penalty = self.kl.penalty(batch.mask, old, reference)
        advantages = leave_one_out(completion_rewards(batch, penalty), batch.present)
        rows = (
            {"advantages": over_tokens(advantages, batch.mask)}
            | sampler_rows(batch, old, self.tis)
            | self.kl.rows(reference)
        )
        metrics = advantage_metrics(advantages, batch.present) | episodes(batch.mask)
        return Targets(rows, metrics | self.kl.metrics(old, reference))

    def loss(self, batch: Batch, policy: Outputs, targets: Targets) -> Loss:
        """Shapes: `policy.logps` is [B, K, T]; the total is [B]."""
        assert policy.logps is not None
        surrogate = score_function(policy.logps, targets.rows["advantages"])
        losses, metrics = policy_loss(surrogate, self.kl, policy, targets)
        return Loss(token_sums(losses, batch.mask), metrics)
