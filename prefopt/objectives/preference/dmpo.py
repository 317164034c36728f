"""Direct Multi-Turn Preference Optimization."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch.nn.functional import logsigmoid, pad

from prefopt.objectives.maths import pair_metrics
from prefopt.support.domains import Positive, Share
from prefopt.types import Batch, Loss, Needs, Outputs, Targets


@dataclass(frozen=True)
class DMPO:
    """Direct Multi-Turn Preference Optimization: DPO of whole episodes whose early turns count more, and no episode for its length.

    L = −log σ(β Σ_t φ(t, N_w) Δ_t^w − β Σ_t φ(t, N_l) Δ_t^l),  φ(t, N) = γ^t (1 − γ^(N−t)) / (1 − γ^N)

    Δ_t is log π − log π_ref of turn t, t = 0 … N − 1, summed over the tokens that the policy wrote in it, so without what the
    environment said. [B, 2], chosen first. φ falls from 1 at the first turn to γ^(N−1) (1 − γ) / (1 − γ^N) at the last: an early
    turn shapes all states after it. γ = 1 gives φ = (N − t)/N; γ = 0 counts the first turn alone. With one turn φ = 1, and this is
    DPO. Turns are the runs of tokens in the mask, or the steps where the data have steps. With π = π_ref the loss is ln 2.

    Where φ comes from: with a KL between the discounted state–action occupancies d of policy and reference, the optimum has
    r(s, a) = β log d*(s, a)/d_ref(s, a) + const. A Bradley–Terry model of Σ_t γ^t r_t / Σ_t γ^t lets the constant cancel between
    episodes of different lengths. log d/d_ref at turn t is the sum of Δ up to t, so Δ_t counts Σ_{k≥t} γ^k / Σ_k γ^k = φ(t, N).

    Source: Shi et al., arXiv 2406.14868. The weights are those of the authors' code (swt-user/DMPO, dmpo_trainer_efficient.py),
    with its defaults β = 0.1 and γ = 0.7; the derivation is repeated above, and the paper's equations were not at hand to be
    cited by number.

    Attributes:
        beta: β, the strength of the implied constraint.
        gamma: γ, the discount of a turn, from 0 to 1.
    """

    beta: Positive = 0.1
    gamma: Share = 0.7
    needs = Needs(completions=2, ordered=True, reference=True)
    contract_exceptions: ClassVar = {
        "environment tokens": "they tell turns apart, and a turn weighs by its number; what they are counts for nothing",
    }

    def __post_init__(self) -> None:
        if not 0 <= self.gamma <= 1:
            raise ValueError(f"gamma discounts turns and must be from 0 to 1, got {self.gamma}")

    def targets(self, batch: Batch, old: Outputs | None, reference: Outputs | None) -> Targets:
        """The weight φ of each token's turn, [B, 2, T], 0 outside the mask; and the reference's weighted sums, [B, 2]."""
        assert reference is not None and reference.logps is not None
        turn = batch.steps
        turns = turn.amax(-1, keepdim=True) + 1
        powers = self.gamma ** torch.arange(batch.mask.shape[-1]).to(reference.logps)
        geometric = pad(powers.cumsum(0), (1, 0))  # Σ_{k<n} γ^k: no division by 1 − γ, which may be 0
        weights = 1 - geometric[turn.clamp(min=0)] / geometric[turns.clamp(min=1)]
        weights = weights.masked_fill(~batch.mask, 0)
        return Targets({"weights": weights, "reference": (weights * reference.logps).sum(-1)})

    def loss(self, batch: Batch, policy: Outputs, targets: Targets) -> Loss:
        """Shapes: `policy.logps` is [B, 2, T]; the total is [B]."""
        assert policy.logps is not None
        reward = self.beta * ((targets.rows["weights"] * policy.logps).sum(-1) - targets.rows["reference"])  # [B, 2]
        return Loss(-logsigmoid(reward[:, 0] - reward[:, 1]), pair_metrics(reward))
