"""The part that turns advantages into a loss: ratios, what bounds them, and what is logged of them."""

from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from prefopt.objectives.maths import bounded_exp, masked_mean, masked_sum
from prefopt.objectives.online.correction import Tis, correction_of
from prefopt.objectives.online.kl import KL
from prefopt.types import Batch, Needs, Outputs, Targets, Unit


def rollout_needs(
    kl: KL,
    per: Unit,
    tis: Tis | None = None,
    old: bool = True,
    values: bool = False,
    one_update: bool = False,
    contrast: bool = False,
) -> Needs:
    """What a policy-gradient method needs: scores of its own completions, and what its KL and its ratios are made of."""
    return Needs(
        scores=True,
        rollouts=True,
        old=old,
        reference=kl.used,
        values=values,
        columns=() if tis is None else ("sampler_logps",),
        statistics=kl.statistics,
        one_update=one_update,
        per=per,
        contrast=contrast,
    )


def needs_per(unit: Unit, values: bool = False, contrast: bool = False) -> Any:
    """The `needs` of an objective with a ratio: scores, the policy before the update, and the reference unless β is 0."""
    return property(lambda self: rollout_needs(self.kl, unit, self.tis, values=values, contrast=contrast))


def ratio_rows(batch: Batch, old: Outputs, tis: Tis | None) -> dict[str, Tensor]:
    """What ratios are made of: `old`, the log-probs before the update, and with `tis` the `sampler` weights, [B, K, T]."""
    assert old.logps is not None
    return {"old": old.logps} | sampler_rows(batch, old, tis)


def sampler_rows(batch: Batch, old: Outputs | None, tis: Tis | None) -> dict[str, Tensor]:
    """With `tis`, the `sampler` weights and the `sampler_ratio` of which the bounds made them, [B, K, T]."""
    if tis is None:
        return {}
    assert old is not None and old.logps is not None
    correction = correction_of(tis)
    ratio = correction.ratio(old.logps, batch.columns["sampler_logps"], batch.mask)
    return {"sampler": correction.weight(ratio, batch.mask), "sampler_ratio": ratio}


def log_ratio(policy: Outputs, targets: Targets) -> Tensor:
    """log π / π_old of each token, [B, K, T]; 0 outside the mask."""
    assert policy.logps is not None
    return (policy.logps - targets.rows["old"]).masked_fill(~policy.mask, 0)


def token_ratio(policy: Outputs, targets: Targets) -> Tensor:
    """ρ_t = π / π_old of each token, [B, K, T]."""
    return bounded_exp(log_ratio(policy, targets))


def sequence_ratio(policy: Outputs, targets: Targets) -> Tensor:
    """s = (π(y) / π_old(y))^(1/|y|), the same at each token of a completion, [B, K, T]."""
    mean = masked_mean(log_ratio(policy, targets), policy.mask)
    return bounded_exp(mean)[..., None].expand(policy.mask.shape)


def clipped(
    ratio: Float[Tensor, "B K T"], advantages: Float[Tensor, "B K T"], low: float, high: float
) -> Float[Tensor, "B K T"]:
    """max(−Aρ, −A clip(ρ, 1 − low, 1 + high)): PPO's loss of a token."""
    return torch.maximum(-advantages * ratio, -advantages * ratio.clamp(1 - low, 1 + high))


def beyond(
    ratio: Float[Tensor, "B K T"], advantages: Float[Tensor, "B K T"], low: float, high: float
) -> Bool[Tensor, "B K T"]:
    """Where `clipped` has no gradient: the ratio has already moved further than the clip allows, in the advantage's direction."""
    return ((ratio > 1 + high) & (advantages > 0)) | ((ratio < 1 - low) & (advantages < 0))


def score_function(logps: Float[Tensor, "B K T"], advantages: Float[Tensor, "B K T"]) -> Float[Tensor, "B K T"]:
    """−A log π: its gradient is that of −E[r] on the policy's own samples. Its value means nothing."""
    return -advantages * logps


def clipped_weight(ratio: Float[Tensor, "B K T"], low: float | None, high: float) -> Float[Tensor, "B K T"]:
    """CISPO's weight of a token, clip(ρ, 1 − low, 1 + high), without gradient; no lower bound if `low` is None."""
    return ratio.detach().clamp(min=None if low is None else 1 - low, max=1 + high)


def value_loss(
    values: Float[Tensor, "B K T"],
    old: Float[Tensor, "B K T"],
    returns: Float[Tensor, "B K T"],
    epsilon: float | None,
) -> Float[Tensor, "B K T"]:
    """½ max((V − R)², (V_clip − R)²), V_clip within ε of the value before the update; ε None clips nothing."""
    error = (values - returns).square()
    if epsilon is None:
        return error / 2
    near = torch.minimum(torch.maximum(values, old - epsilon), old + epsilon)
    return torch.maximum(error, (near - returns).square()) / 2


def row_mean(values: Float[Tensor, "B K T"], mask: Bool[Tensor, "B K T"]) -> Float[Tensor, " B"]:
    """A metric: the mean over a prompt's tokens, without gradient; NaN where it has none."""
    return masked_mean(values.detach().flatten(1), mask.flatten(1)).masked_fill(~mask.any(-1).any(-1), torch.nan)


def _row_max(values: Float[Tensor, "B K T"], mask: Bool[Tensor, "B K T"]) -> Float[Tensor, " B"]:
    """A metric: the largest of a prompt's tokens, without gradient; NaN where it has none."""
    alone = ~mask.any(-1).any(-1)
    return values.detach().masked_fill(~mask, -torch.inf).amax((1, 2)).masked_fill(alone, torch.nan)


def ratio_metrics(ratio: Tensor, bound: Tensor, policy: Outputs, targets: Targets) -> dict[str, Tensor]:
    """How far the policy has moved within an update, [B] each.

    Args:
        ratio: [B, K, T], of tokens or sequences.
        bound: [B, K, T] bool, where the clip has stopped the gradient.
        policy: the policy now.
        targets: with what it said before.
    """
    mask = policy.mask
    moved = log_ratio(policy, targets).detach()
    return {
        "ratio/mean": row_mean(ratio, mask),
        "ratio/max": _row_max(ratio, mask),
        "ratio/clipped": row_mean(bound.to(ratio), mask),
        "ratio/kl": row_mean(bounded_exp(moved) - 1 - moved, mask),  # k3, of KL(old‖π)
    }


def policy_loss(surrogate: Tensor, kl: KL, policy: Outputs, targets: Targets) -> tuple[Tensor, dict[str, Tensor]]:
    """A surrogate's tokens [B, K, T] times their sampler weights, plus the KL that is placed in the loss; and their metrics."""
    penalty = kl.loss(policy, targets)
    metrics = {}
    if (weight := targets.rows.get("sampler")) is not None:
        surrogate = surrogate * weight
        ratio = targets.rows["sampler_ratio"]
        metrics["ratio/sampler"] = row_mean(weight, policy.mask)
        metrics["ratio/sampler_max"] = _row_max(ratio, policy.mask)
        metrics["ratio/sampler_outside"] = row_mean((weight != ratio).to(ratio), policy.mask)
    if kl.used and kl.placement == "loss":
        metrics["kl/loss"] = row_mean(penalty / kl.beta, policy.mask)
    return surrogate + penalty, metrics


def clipped_losses(
    kl: KL, policy: Outputs, targets: Targets, ratio: Tensor, low: float, high: float
) -> tuple[Tensor, dict[str, Tensor]]:
    """PPO's clip of this ratio, [B, K, T], with sampler weights and the KL of the loss; and what is logged of it, [B] each."""
    advantages = targets.rows["advantages"]
    losses, metrics = policy_loss(clipped(ratio, advantages, low, high), kl, policy, targets)
    return losses, metrics | ratio_metrics(ratio, beyond(ratio, advantages, low, high), policy, targets)


def token_means(losses: Float[Tensor, "B K T"], mask: Bool[Tensor, "B K T"]) -> Float[Tensor, " B"]:
    """Σ_k mean_t, [B]: with `per="completion"`, the mean over completions of the mean over their tokens."""
    return masked_mean(losses, mask).sum(-1)


def token_sums(losses: Float[Tensor, "B K T"], mask: Bool[Tensor, "B K T"]) -> Float[Tensor, " B"]:
    """Σ_k Σ_t, [B]: with `per="token"` the mean over all tokens, with `per="completion"` the mean of completions' sums."""
    return masked_sum(losses, mask).sum(-1)
