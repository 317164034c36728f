"""What many preference losses have in common, so that each of their files holds what is its own."""

from typing import Any

import torch
from jaxtyping import Bool, Float, Num
from torch import Tensor

from prefopt.types import Batch, Outputs, Targets


def nothing(_: Any, batch: Batch, old: Outputs | None, reference: Outputs | None) -> Targets:
    """A `targets` method for losses without a reference."""
    return Targets()


def reference_sums(_: Any, batch: Batch, old: Outputs | None, reference: Outputs | None) -> Targets:
    """A `targets` method: keeps the reference's summed log-probs, [B, K]."""
    assert reference is not None
    return Targets({"reference": reference.sum()})


def reference_means(_: Any, batch: Batch, old: Outputs | None, reference: Outputs | None) -> Targets:
    """A `targets` method: keeps the reference's mean log-prob of a token, [B, K]."""
    assert reference is not None
    return Targets({"reference": reference.mean()})


def log_ratios(policy: Outputs, targets: Targets) -> Float[Tensor, "B K"]:
    """Δ = log π(y|x) − log π_ref(y|x), summed over tokens, [B, K]; after `reference_sums`."""
    return policy.sum() - targets.rows["reference"]


def off_centre(rewards: Float[Tensor, "B K"], present: Bool[Tensor, "B K"]) -> Float[Tensor, " B"]:
    """[B] (2/K Σ_k r_k)² over the completions that are present: 0 where a prompt's rewards have mean 0.

    Rankings fix a reward only up to a constant for each prompt, and this sees nothing but that constant. With two completions it is
    (r_w + r_l)², the centring of Eisenstein et al., arXiv 2312.09244, for pairs.
    """
    count = present.sum(-1).clamp(min=1)
    return (2 * rewards.masked_fill(~present, 0).sum(-1) / count) ** 2


def desirability(batch: Batch) -> Num[Tensor, "B K"]:
    """[B, K]: +1 for a completion to be made likelier, −1 for one to be made less likely, 0 for neither.

    Of a single completion, the sign of its score; of several, whether the score is above or below their mean. So a pair, a
    label and a list of ratings can all serve a loss of single completions.
    """
    assert batch.scores is not None
    present = batch.present
    scores = batch.scores.masked_fill(~present, 0)
    count = present.sum(-1, keepdim=True)
    mean = (scores.sum(-1, keepdim=True) / count.clamp(min=1)).masked_fill(count < 2, 0)
    relative = scores - mean
    # The mean of equal scores may miss them by rounding, which is no difference.
    known = present & (relative.abs() > 1e-6 * scores.abs().amax(-1, keepdim=True))
    return torch.where(known, relative.sign(), 0)
