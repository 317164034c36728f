"""Length-desensitised DPO."""

from dataclasses import dataclass

import torch
from torch.nn.functional import logsigmoid

from prefopt.objectives.maths import pair_metrics
from prefopt.support.domains import Positive, Share
from prefopt.types import Batch, Loss, Needs, Outputs, Targets


@dataclass(frozen=True)
class LDDPO:
    """Length-desensitised DPO: tokens past the length of the shorter completion count less.

    L = −log σ(β(Δ′_w − Δ′_l)),  Δ′ = Σ_t c_t [log π(y_t|·) − log π_ref(y_t|·)],  c_t = 1 for t ≤ min(|y_w|, |y_l|), α after it

    t counts the tokens that the mask keeps, from 1, so that text from a tool in between is not counted. [B, 2], chosen first. The
    shorter completion is untouched. α = 1 is DPO; α = 0 compares equal lengths only. Policy and reference are weighted alike:
    with π = π_ref the loss is ln 2.

    Source: Liu et al., arXiv 2409.06411: the modified likelihood p(shared)·p(rest)^α; α is tuned there for each model,
    0.5 is in the middle of what serves. β = 0.1 is DPO's. TRL 1.16 has it as `ld_alpha`.

    Attributes:
        beta: β, the strength of the implied KL constraint.
        alpha: α, from 0 to 1, the weight of the tokens in excess.
    """

    beta: Positive = 0.1
    alpha: Share = 0.5
    needs = Needs(completions=2, ordered=True, reference=True)

    def __post_init__(self) -> None:
        if not 0 <= self.alpha <= 1:
            raise ValueError(f"alpha weighs the tokens in excess and must be from 0 to 1, got {self.alpha}")

    def targets(self, batch: Batch, old: Outputs | None, reference: Outputs | None) -> Targets:
        """The weights c, [B, 2, T], 0 outside the mask; and the reference's weighted sums, [B, 2]."""
        assert reference is not None and reference.logps is not None
        shared = batch.mask.sum(-1).amin(-1)[:, None, None]
        ones = batch.mask.to(reference.logps.dtype)
        weights = torch.where(batch.mask.cumsum(-1) <= shared, ones, self.alpha * ones)
        return Targets({"weights": weights, "reference": (weights * reference.logps).sum(-1)})

    def loss(self, batch: Batch, policy: Outputs, targets: Targets) -> Loss:
        """Shapes: `policy.logps` is [B, 2, T]; the total is [B]."""
        assert policy.logps is not None
        delta = (targets.rows["weights"] * policy.logps).sum(-1) - targets.rows["reference"]  # [B, 2]
        reward = self.beta * delta
        return Loss(-logsigmoid(reward[:, 0] - reward[:, 1]), pair_metrics(reward))
