"""Noise contrastive alignment."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from prefopt.objectives.maths import list_metrics, masked_log_softmax
from prefopt.objectives.parts import log_ratios, reference_sums
from prefopt.support.domains import Positive
from prefopt.types import Batch, Loss, Needs, Outputs, Targets


@dataclass(frozen=True)
class InfoNCA:
    """InfoNCA: the policy's ranking of K completions, as a distribution, should be that of their scores.

    L = −Σ_k p_k log softmax_k(βΔ),  p = softmax(r/α),  Δ = log π(y|x) − log π_ref(y|x)

    r are the scores and Δ sums over tokens, [B, K], completions that are absent left out. As α → 0 the best completion is the
    one-hot target, and with two completions this is DPO.

    On the pocket world (experiments/objectives) its gain is not sure in every seed: β = 0.01 hardly holds it near the reference.

    Source: Chen et al., arXiv 2402.05369v3 (InfoNCA), and the official code (thu-ml/Noise-Contrastive-Alignment,
    reward_trainer.py), whose β = 0.01 is the default. α sets how much a difference of scores means and belongs to the scale of
    the data's scores; 1 leaves them as they are, and is this project's choice. The code's `temperature_alpha` is 1e-4, in effect
    the one-hot target, and it adds 0.01 to the score of the first completion.

    Attributes:
        beta: β.
        alpha: α > 0, the temperature of the scores.
    """

    beta: Positive = 0.01
    alpha: Positive = 1.0
    needs = Needs(completions=None, scores=True, reference=True)
    targets = reference_sums

    def __post_init__(self) -> None:
        _check_temperature(self.alpha)

    def loss(self, batch: Batch, policy: Outputs, targets: Targets) -> Loss:
        """Shapes: `policy.logps` is [B, K, T]; the total is [B]."""
        reward = self.beta * log_ratios(policy, targets)  # [B, K]
        total = -(_targets(batch, self.alpha) * masked_log_softmax(reward, batch.present)).sum(-1)
        return Loss(total, list_metrics(reward, batch))


@dataclass(frozen=True)
class NCA(InfoNCA):
    """NCA: each completion's own implicit reward is pulled up by its target and pushed down like all others.

    L = −Σ_k [p_k log σ(βΔ_k) + 1/K log σ(−βΔ_k)],  p = softmax(r/α),  Δ = log π(y|x) − log π_ref(y|x)

    Shapes and symbols as in `InfoNCA`; K is the number of completions that are present. Since it looks at Δ itself and not at
    differences, it keeps the likelihood of the best completion from falling.

    Source: Chen et al., arXiv 2402.05369v3 (NCA), and the official code; β and α as in `InfoNCA`. TRL's `nca_pair` is K = 2 and
    p = (1, 0).

    Attributes:
        beta: β, as in `InfoNCA`.
        alpha: α, as in `InfoNCA`.
    """

    def loss(self, batch: Batch, policy: Outputs, targets: Targets) -> Loss:
        """Shapes: `policy.logps` is [B, K, T]; the total is [B]."""
        reward = self.beta * log_ratios(policy, targets)  # [B, K]
        present = batch.present.to(reward)
        noise = present / present.sum(-1, keepdim=True).clamp(min=1)
        total = -(_targets(batch, self.alpha) * logsigmoid(reward) + noise * logsigmoid(-reward)).sum(-1)
        return Loss(total, list_metrics(reward, batch))


def _targets(batch: Batch, alpha: float) -> Tensor:
    """p, [B, K]; 0 for absent completions."""
    assert batch.scores is not None
    return torch.where(batch.present, masked_log_softmax(batch.scores / alpha, batch.present).exp(), 0)


def _check_temperature(alpha: float) -> None:
    if alpha <= 0:
        raise ValueError(f"alpha is the temperature of the scores and must be above 0, got {alpha}")
