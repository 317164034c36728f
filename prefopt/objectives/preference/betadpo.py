"""DPO with a dynamic β."""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

import torch
from torch.nn.functional import logsigmoid

from prefopt.objectives.maths import pair_metrics
from prefopt.objectives.parts import log_ratios
from prefopt.support.domains import Decay, Finite, NonNegative, Positive, PositiveShare
from prefopt.types import Batch, Loss, Needs, Outputs, Targets


@dataclass(frozen=True)
class BetaDPO:
    """β-DPO: β follows each batch's mean gap, and pairs with an unusual gap are dropped at random.

    L = −w log σ(β_b h),  h = Δ_w − Δ_l,  Δ = log π(y|x) − log π_ref(y|x)

    Log-probs are summed over the tokens of a completion, [B, 2], chosen first. Before the update, over the logical batch of n
    pairs:

    M_i = h of pair i, without β;  M_0 ← m M_0 + (1 − m) mean M,  σ ← m σ + (1 − m) std M,
    kept: ⌊ρn⌋ pairs drawn without replacement with weights exp(−½((M_i − M_0)/σ)²),
    β_b = max(0.001, β[1 + α(mean of the kept M − M_0)]),  w = n/⌊ρn⌋ for the kept and 0 for the others

    so that the loss of a logical batch is the mean over its kept pairs, as in the official code; where it is cut into minibatches,
    theirs is so on average. The reward in the metrics is β_bΔ, of all pairs. `gap_mean` is M_0, `gap_std` is σ, `beta` is β_b.

    Source: Wu et al., arXiv 2407.08639, and the official code (junkangwu/beta-DPO, trainers.py), which this follows: the
    averages move first, and β_b sees the kept pairs alone. m = 0.9; α = 0.6 and ρ = 0.8 (it drops 0.2) are those of its README's
    example, with β = 0.1. Two things differ. There M_0 and σ start at 0, so that the first batch is measured against a tenth of
    its own mean and std; here they start at the first batch's own. And there all of this is done for each micro-batch, whose
    gaps all processes share, but each process draws, and takes the mean over its own kept pairs; here the logical batch is
    one, so that the result does not depend on the hardware. std is unbiased; of a single pair it is 0.

    Attributes:
        beta: β, before it is scaled.
        alpha: α ≥ 0, how strongly β follows the gap; `a` in the official code.
        rho: ρ, the share of pairs that is kept, above 0 and at most 1; at least one pair is.
        momentum: m, from 0 to 1 (excluded), of the running averages.
        mean: M_0, the running mean of the gap; None before the first batch.
        std: σ, the running standard deviation; None before the first batch.
    """

    beta: Positive = 0.1
    alpha: NonNegative = 0.6
    rho: PositiveShare = 0.8
    momentum: Decay = 0.9
    mean: Finite | None = None
    std: Positive | None = None
    needs = Needs(completions=2, ordered=True, reference=True, old=True)

    def __post_init__(self) -> None:
        if not 0 < self.rho <= 1:
            raise ValueError(
                f"rho is the share of pairs that is kept and must be above 0 and at most 1, got {self.rho}"
            )
        if not 0 <= self.momentum < 1:
            raise ValueError(f"momentum must be at least 0 and below 1, got {self.momentum}")

    def targets(self, batch: Batch, old: Outputs | None, reference: Outputs | None) -> Targets:
        """The reference's sums, [B, 2]; β_b and the weights w, [B]."""
        assert old is not None and reference is not None
        delta = old.sum() - reference.sum()
        gap = delta[:, 0] - delta[:, 1]
        count = len(batch)
        mean = self._moved(self.mean, gap.mean().item())
        std = self._moved(self.std, gap.std(correction=min(1, count - 1)).item())
        kept = max(1, math.floor(self.rho * count + 1e-9))
        # The largest of log-weight − log-exponential are such a draw, and exist where the weights underflow to 0.
        clock = torch.empty(count, dtype=torch.float64).exponential_().log()
        # A spread within rounding, as where the policy is its reference, is none: noise must not choose the pairs.
        rounding = 100 * torch.finfo(gap.dtype).eps * (1 + old.sum().abs().mean().item())
        standard = (gap.cpu().double() - mean) / max(std, rounding)
        drawn = (-standard.square() / 2 - clock).topk(kept).indices.to(gap.device)
        weight = torch.zeros_like(gap).index_fill(0, drawn, count / kept)
        beta = max(1e-3, self.beta * (1 + self.alpha * (gap[drawn].mean().item() - mean)))
        return Targets(
            {"reference": reference.sum(), "weight": weight, "beta": torch.full_like(gap, beta)},
            {"gap_mean": mean, "gap_std": std, "beta": beta},
        )

    def loss(self, batch: Batch, policy: Outputs, targets: Targets) -> Loss:
        """Shapes: `policy.logps` is [B, 2, T]; the total is [B]."""
        reward = targets.rows["beta"][:, None] * log_ratios(policy, targets)  # [B, 2]
        total = -targets.rows["weight"] * logsigmoid(reward[:, 0] - reward[:, 1])
        return Loss(total, pair_metrics(reward))

    def adapted(self, metrics: Mapping[str, float]) -> Self:
        """Itself with the averages that `targets` found."""
        return dataclasses.replace(self, mean=metrics["gap_mean"], std=metrics["gap_std"])

    def _moved(self, average: float | None, value: float) -> float:
        return value if average is None else self.momentum * average + (1 - self.momentum) * value
