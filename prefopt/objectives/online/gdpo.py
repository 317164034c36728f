"""Group reward-Decoupled Normalization Policy Optimization."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from prefopt.objectives.maths import masked_sum
from prefopt.objectives.online.advantage import scores_of, standardised
from prefopt.objectives.online.correction import Tis
from prefopt.objectives.online.group import group_targets
from prefopt.objectives.online.kl import Estimator, check_kl, kl_in_loss
from prefopt.objectives.online.surrogate import clipped_losses, rollout_needs, token_means, token_ratio
from prefopt.support.domains import Finite, NonNegative, Positive
from prefopt.support.errors import PrefoptError
from prefopt.types import Batch, Loss, Needs, Outputs, Targets


@dataclass(frozen=True)
class GDPO:
    """GDPO: GRPO on several named scores, each normalised within its group by itself before they are summed.

    L = mean over completions of mean_t [max(−A ρ_t, −A clip(ρ_t, 1 − ε, 1 + ε)) + β kl_t],
    S_i = Σ_n w_n (s_in − mean_j s_jn) / (std_j s_jn + e),  A_i = (S_i − mean S) / (std S + e)

    mean_j and std_j are over a prompt's completions, mean S and std S over all completions of the logical batch, on all
    processes. The s_n, [B, K], are `batch.named_scores`; `return` among the weights is Σ_t of the rewards of turns, which are an
    environment's, and `score` is the score of the whole. Summed first, as `GRPO` has to take them, scores of larger spread drown
    the others, and completions that differ may have one sum. A score that is not known of a completion (NaN) adds nothing there.
    In each group S has mean 0, so the batch's mean is 0, too; its std keeps updates from growing with the number of scores.

    Source: Liu et al., arXiv 2601.05242v1, as TRL 1.16 has it (`multi_objective_aggregation="normalize_then_sum"`), with unbiased
    std and e = 0.0001. The official code for verl whitens over tokens, in which long completions weigh more. ε = 0.2 and no KL
    (β = 0) are those of its scripts (NVlabs/GDPO, train_gdpo.sh).

    Attributes:
        weights: w_n by name, {helpful: 1, short: 0.5}; None takes every named score with weight 1, and where nothing has a name
            `score`, and `return` if turns have rewards.
        beta: β ≥ 0, the weight of the KL.
        epsilon: ε, how far a ratio may move.
        e: what is added to standard deviations.
        estimator: of the KL, which is in the loss: "k1", "k2", "k3" or "exact".
        tis: corrects for the sampler: the largest weight of a token, or a `Correction`; None does not.
    """

    weights: Mapping[str, Finite] | None = field(default=None, hash=False)
    beta: NonNegative = 0.0
    epsilon: Positive = 0.2
    e: Positive = 1e-4
    estimator: Estimator = "k3"
    tis: Tis | None = None
    kl = property(kl_in_loss)

    def __post_init__(self) -> None:
        check_kl(self)
        if self.weights is not None and not any(self.weights.values()):
            raise ValueError("weights name a score and its weight, at least one above or below 0, or are null")

    @property
    def needs(self) -> Needs:
        """As `GRPO`, and the named scores."""
        named = tuple(name for name in self.weights or () if name not in ("return", "score"))
        return replace(rollout_needs(self.kl, "completion", self.tis, contrast=True), named_scores=named)

    def targets(self, batch: Batch, old: Outputs | None, reference: Outputs | None) -> Targets:
        """Advantages and old log-probs, [B, K, T] each.

        Raises:
            PrefoptError: a score that is weighed is not there.
        """
        scores = scores_apart(batch)
        weights = self._weights_of(batch)
        if missing := [name for name in weights if name not in scores]:
            raise PrefoptError(f"GDPO weighs {missing[0]!r}, and a batch has only {', '.join(scores)}")
        summed = torch.zeros_like(scores_of(batch))
        for name, weight in weights.items():
            known = batch.present & ~scores[name].isnan()
            summed = summed + weight * standardised(scores[name].nan_to_num(), known, self.e)
        whole = standardised(summed.view(1, -1), batch.present.view(1, -1), self.e).view_as(summed)
        targets = group_targets(self, batch, old, reference, whole)
        means = {f"scores/{name}": scores[name][batch.present].nanmean().item() for name in weights}
        return replace(targets, metrics={**targets.metrics, **means})

    def _weights_of(self, batch: Batch) -> Mapping[str, float]:
        if self.weights is not None:
            return self.weights
        whole = ["score"] if batch.rewards is None else ["score", "return"]
        return dict.fromkeys(batch.named_scores or whole, 1.0)

    def loss(self, batch: Batch, policy: Outputs, targets: Targets) -> Loss:
        """Shapes: `policy.logps` is [B, K, T]; the total is [B]."""
        ratio = token_ratio(policy, targets)
        losses, metrics = clipped_losses(self.kl, policy, targets, ratio, self.epsilon, self.epsilon)
        return Loss(token_means(losses, batch.mask), metrics)


def scores_apart(batch: Batch) -> dict[str, Tensor]:
    """[B, K] each: the named scores, the `score` of the whole, and the `return` where turns have rewards."""
    named = {name: s.to(torch.promote_types(s.dtype, torch.float32)) for name, s in batch.named_scores.items()}
    returns = {} if batch.rewards is None else {"return": masked_sum(batch.rewards, batch.mask)}
    return {"score": scores_of(batch), **named, **returns}
