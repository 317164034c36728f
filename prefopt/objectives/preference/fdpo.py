"""f-DPO: DPO under other divergences than the reverse KL."""

import math
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from prefopt.objectives.maths import pair_metrics
from prefopt.objectives.parts import log_ratios, reference_sums
from prefopt.support.domains import NonNegative, Positive
from prefopt.types import Batch, Loss, Needs, Outputs, Targets

Divergence = Literal["reverse_kl", "forward_kl", "js", "alpha"]

HIGHEST = 40.0
"""Of the exponents: e⁴⁰ squared and summed, as in a gradient norm, is still a float32."""


@dataclass(frozen=True)
class FDPO:
    """f-DPO: DPO with the reverse KL to the reference replaced by another f-divergence.

    L = −log σ(β[f′(ρ_w) − f′(ρ_l)]),  ρ = e^Δ,  Δ = log π(y|x) − log π_ref(y|x), with f′(ρ), here with f′(1) = 0:

    reverse_kl: Δ · forward_kl: 1 − e^(−Δ) · js: ln 2 + log σ(Δ) · alpha: (e^((α−1)Δ) − 1) / (α − 1)

    Log-probs are summed over the tokens of a completion, [B, 2], chosen first. With π = π_ref the loss is ln 2. reverse_kl is
    DPO, and so is alpha as α → 1; alpha at α = 0 is forward_kl.

    Source: Wang et al., arXiv 2309.16240v1. α is TRL's: the paper's α is 1 − α here, and both are ½ at TRL's
    default, 0.5. β = 0.1 is DPO's. Exponents are clamped at 40, where TRL 1.16 clamps those of `alpha` at 80 and those of
    `forward_kl` not at all: a completion beyond has no gradient.

    Attributes:
        beta: β, the strength of the implied constraint.
        divergence: "reverse_kl", "forward_kl", "js" or "alpha".
        alpha: α, for divergence "alpha" alone.
    """

    beta: Positive = 0.1
    divergence: Divergence = "alpha"
    alpha: NonNegative = 0.5
    needs = Needs(completions=2, ordered=True, reference=True)

    targets = reference_sums

    def __post_init__(self) -> None:
        if self.divergence not in get_args(Divergence):
            raise ValueError(f"divergence must be one of {', '.join(get_args(Divergence))}, got {self.divergence!r}")

    def loss(self, batch: Batch, policy: Outputs, targets: Targets) -> Loss:
        """Shapes: `policy.logps` is [B, 2, T]; the total is [B]."""
        reward = self.beta * self._derivative(log_ratios(policy, targets))  # [B, 2]
        return Loss(-logsigmoid(reward[:, 0] - reward[:, 1]), pair_metrics(reward))

    def _derivative(self, delta: Tensor) -> Tensor:
        """f′(e^Δ)."""
        if self.divergence == "js":
            return math.log(2) + logsigmoid(delta)
        power = {"reverse_kl": 0.0, "forward_kl": -1.0, "alpha": self.alpha - 1}[self.divergence]
        if power == 0:
            return delta
        return torch.expm1((power * delta).clamp(max=HIGHEST)) / power
