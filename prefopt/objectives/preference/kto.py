"""Kahneman–Tversky Optimization."""

from dataclasses import dataclass

import torch
from torch import Tensor

from prefopt.objectives.parts import log_ratios, reference_sums
from prefopt.support.domains import NonNegative, Positive
from prefopt.types import ORIGINS, Batch, Loss, Needs, Outputs, Targets


@dataclass(frozen=True)
class KTO:
    """Kahneman–Tversky Optimization: labelled completions against what the policy has drifted on average.

    L = λ_D σ(β(z0 − Δ)) for a desirable completion, λ_U σ(β(Δ − z0)) for an undesirable one,
    Δ = log π(y|x) − log π_ref(y|x),  z0 = max(0, mean Δ over mismatched completions), without gradient

    Log-probs are summed over tokens, [B, 2]: a labelled completion, whose score's sign is the label, and then another prompt's
    completion, which may be absent. z0 estimates KL(π‖π_ref) and couples the rows of a batch; without any mismatched completion
    it is 0. σ(−x) stands for the paper's 1 − σ(x). The metrics' rewards are βΔ; `z0` at 0 for long says that all likelihoods fell.

    Source: Ethayarajh et al., arXiv 2402.01306v4 (§4.1). In TRL 1.16 z0 is the mean over what all processes forward at once, so
    that it changes with the micro-batch; here it is that of the logical batch. The paper asks for λ_D n_D / (λ_U n_U) between 1
    and 3/2, n being the numbers of labels (TRL warns outside of 1 to 4/3). λ_D = λ_U = 1 is for balanced data, β = 0.1 TRL's
    default. TRL's other loss of labelled completions, `apo_zero_unpaired`, is `APOZero` with each pair's two sides apart.

    Attributes:
        beta: β, how soon a completion counts as good or bad enough.
        lam_d: λ_D, the weight of desirable completions.
        lam_u: λ_U, the weight of undesirable ones.
    """

    beta: Positive = 0.1
    lam_d: NonNegative = 1.0
    lam_u: NonNegative = 1.0
    needs = Needs(completions=2, scores=True, columns=("origin",), reference=True, whole_batch=True, signs=True)
    targets = reference_sums

    def loss(self, batch: Batch, policy: Outputs, targets: Targets) -> Loss:
        """Shapes: `policy.logps` is [B, 2, T]; the total is [B]."""
        assert batch.scores is not None
        delta = log_ratios(policy, targets)  # [B, 2]
        foreign = batch.columns["origin"] == ORIGINS.index("mismatched")
        z0 = _mean(delta.detach(), foreign & batch.present).clamp(min=0)
        label = torch.where(foreign | ~batch.present, 0, batch.scores.sign())
        weight = self.lam_d * (label > 0) + self.lam_u * (label < 0)
        total = (weight * torch.sigmoid(-label * self.beta * (delta - z0))).sum(-1)
        reward = self.beta * delta.detach()
        metrics = {
            "rewards/desirable": torch.where(label > 0, reward, torch.nan).nanmean(-1),
            "rewards/undesirable": torch.where(label < 0, reward, torch.nan).nanmean(-1),
            "z0": z0.expand(len(batch)),
        }
        return Loss(total, metrics)


def _mean(values: Tensor, where: Tensor) -> Tensor:
    """The mean of some of them; 0 of none."""
    return values.masked_fill(~where, 0).sum() / where.sum().clamp(min=1)
