"""Whether a reward model's differences are the log-odds they claim to be, and which pairs it gets right."""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import logsigmoid

from prefopt.recipe.schema.evaluate import GAPS

BINS = 10
"""Of equal width, for the confidence of a prediction, ½ to 1."""


def pair_nll(margin: Float[Tensor, " N"], p: Float[Tensor, " N"]) -> Float[Tensor, " N"]:
    """−p log σ(d) − (1 − p) log σ(−d), in nats.

    Args:
        margin: d, reward of one completion minus that of the other, [N].
        p: the probability that the one beats the other, by the labels; 1 for a choice.
    """
    return -p * logsigmoid(margin) - (1 - p) * logsigmoid(-margin)


def brier(margin: Float[Tensor, " N"], p: Float[Tensor, " N"]) -> Float[Tensor, " N"]:
    """(σ(d) − p)², 0 to 1; Brier, Monthly Weather Review 78 (1950), and its half for two outcomes.

    Args:
        margin: d, as for `pair_nll`.
        p: as for `pair_nll`. With shares of raters it is the squared distance to the share, and so can be 0.
    """
    return (margin.sigmoid() - p) ** 2


def calibration_error(margin: Float[Tensor, " N"], p: Float[Tensor, " N"]) -> float:
    """Expected calibration error: Σ_bins n_bin / N · |mean confidence − mean accuracy|, 0 to ½; NaN for no pair.

    The prediction is the completion with the higher reward, the confidence in it σ(|d|), and its accuracy the probability by the
    labels that it wins; so the order of a pair does not matter. A tie is a confidence of ½ and right half of the time.

    Source: Guo et al., arXiv 1706.04599, eq. 3; bins of equal width, here on [½, 1]. In small samples it is above 0 even for a
    calibrated model.

    Args:
        margin: d, as for `pair_nll`.
        p: as for `pair_nll`.
    """
    if not len(margin):
        return float("nan")
    confidence = margin.abs().sigmoid()
    correct = torch.where(margin > 0, p, torch.where(margin < 0, 1 - p, torch.full_like(p, 0.5)))
    which = ((confidence - 0.5) * 2 * BINS).long().clamp(max=BINS - 1)
    # n_bin · |mean − mean| is the absolute difference of the bin's sums.
    off = torch.zeros(BINS, dtype=margin.dtype, device=margin.device).index_add(0, which, confidence - correct)
    return (off.abs().sum() / len(margin)).item()


def by_gap(values: Float[Tensor, " N"], gap: Float[Tensor, " N"]) -> tuple[dict[str, Float[Tensor, " N"]], list[float]]:
    """Values split by the terciles of a gap.

    Args:
        values: of N pairs.
        gap: |s_w − s_l| of each, by the scores of the data.

    Returns:
        For each of `GAPS` that has a pair, the values, NaN for the pairs of another; and the two limits: small is up to the first,
        medium up to the second, large above it. Nothing where all gaps are equal, as they are between bare preferences.
    """
    if not len(gap) or gap.min() == gap.max():
        return {}, []
    limits = gap.quantile(torch.tensor([1 / 3, 2 / 3], dtype=gap.dtype, device=gap.device))
    where = torch.bucketize(gap, limits)  # gap ≤ limit goes below it
    split = {name: values.masked_fill(where != i, torch.nan) for i, name in enumerate(GAPS) if (where == i).any()}
    return split, limits.tolist()
