"""REINFORCE++."""

from dataclasses import dataclass, replace
from typing import Literal, get_args

from prefopt.objectives.maths import discounted_returns, whiten
from prefopt.objectives.online.advantage import advantage_metrics, centred, episodes, scores_of, token_rewards
from prefopt.objectives.online.correction import Tis
from prefopt.objectives.online.kl import Estimator, Placement, check_kl, kl_as_placed
from prefopt.objectives.online.surrogate import clipped_losses, ratio_rows, rollout_needs, token_ratio, token_sums
from prefopt.support.domains import NonNegative, Positive
from prefopt.types import Batch, Loss, Outputs, Targets

Baseline = Literal["none", "group"]


@dataclass(frozen=True)
class ReinforcePlusPlus:
    """REINFORCE++: PPO's clip without a critic; advantages are returns, whitened over the whole batch.

    L = mean_t max(−A_t ρ_t, −A_t clip(ρ_t, 1 − ε, 1 + ε)),  A = whiten(R),  R_t = Σ_{s≥t} r_s,
    r_t = −β kl_t + 1[t is the last token] · score

    All of [B, K, T]; means, and the mean and variance of `whiten`, are over the tokens of the logical (mini)batch, on all
    processes together. With `baseline="group"` the score is first reduced by the mean of its prompt's completions. A long
    completion has many tokens, so it weighs more in the mean that is subtracted.

    Source: Hu et al., arXiv 2501.03262v9: the general variant, K ≥ 1, and the one "with baseline", K > 1, whose KL is k2 in the
    loss: write baseline: group, estimator: k2, placement: loss. ε = 0.2 is PPO's, β = 0.01 that of the authors' OpenRLHF.

    Attributes:
        beta: β ≥ 0, the weight of the KL.
        epsilon: ε, how far a ratio may move.
        baseline: "none" or "group".
        estimator: of the KL: "k1", "k2", "k3" or "exact".
        placement: of the KL: "reward" or "loss".
        tis: corrects for the sampler: the largest weight of a token, or a `Correction`; None does not.
    """

    beta: NonNegative = 0.01
    epsilon: Positive = 0.2
    baseline: Baseline = "none"
    estimator: Estimator = "k1"
    placement: Placement = "reward"
    tis: Tis | None = None
    kl = property(kl_as_placed)
    needs = property(lambda self: rollout_needs(self.kl, "token", self.tis, contrast=self.baseline == "group"))

    def __post_init__(self) -> None:
        check_kl(self)
        if self.baseline not in get_args(Baseline):
            raise ValueError(f"baseline must be one of {', '.join(get_args(Baseline))}, got {self.baseline!r}")

    def targets(self, batch: Batch, old: Outputs | None, reference: Outputs | None) -> Targets:
        """Advantages and old log-probs, [B, K, T] each."""
        assert old is not None
        if self.baseline == "group":
            batch = replace(batch, scores=centred(scores_of(batch), batch.present))
        rewards = token_rewards(batch, self.kl.penalty(batch.mask, old, reference))
        returns = discounted_returns(rewards, batch.mask, 1.0)
        rows = {"advantages": whiten(returns, batch.mask)} | ratio_rows(batch, old, self.tis) | self.kl.rows(reference)
        metrics = advantage_metrics(returns, batch.mask) | episodes(batch.mask) | self.kl.metrics(old, reference)
        return Targets(rows, metrics)

    def loss(self, batch: Batch, policy: Outputs, targets: Targets) -> Loss:
        """Shapes: `policy.logps` is [B, K, T]; the total is [B]."""
        ratio = token_ratio(policy, targets)
        losses, metrics = clipped_losses(self.kl, policy, targets, ratio, self.epsilon, self.epsilon)
        return Loss(token_sums(losses, batch.mask), metrics)
