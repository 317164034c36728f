"""AlphaPO."""

from dataclasses import dataclass

import torch
from torch.nn.functional import logsigmoid

from prefopt.objectives.maths import pair_metrics
from prefopt.objectives.parts import nothing
from prefopt.support.domains import Finite, NonNegative, Positive
from prefopt.types import Batch, Loss, Needs, Outputs, Targets

HIGHEST = 40.0
"""Largest exponent, so that a hopeless completion does not overflow float32."""


@dataclass(frozen=True)
class AlphaPO:
    """AlphaPO: SimPO with a reward of another shape.

    L = −log σ(β(r_w − r_l) − γ),  r = (1 − p^(−α))/α,  p = exp(l̄),  l̄ = mean over tokens of log π(y_t|x, y_<t)

    l̄ is [B, 2], chosen first; the reward in the metrics is βr. α → 0 gives r = l̄, which is SimPO; α > 0 makes unlikely
    completions worse still. The exponent −α l̄ is cut at 40.

    Source: Gupta et al., arXiv 2501.03884v3. α = 0.25 and β = 2.5 are those of its table 3 for Mistral-Instruct (by TRL's
    documentation, which has γ = 0.1 there); γ = 0.5 is that of `SimPO`. TRL 1.16 has this loss in its CPO trainer, as
    `loss_type="alphapo"`.

    Attributes:
        beta: β.
        gamma: γ, the margin that is asked for, in units of the reward.
        alpha: α, the shape; any number.
    """

    beta: Positive = 2.5
    gamma: NonNegative = 0.5
    alpha: Finite = 0.25
    needs = Needs(completions=2, ordered=True)
    targets = nothing

    def loss(self, batch: Batch, policy: Outputs, targets: Targets) -> Loss:
        """Shapes: `policy.logps` is [B, 2, T]; the total is [B]."""
        logps = policy.mean()
        shaped = logps if self.alpha == 0 else -torch.expm1((-self.alpha * logps).clamp(max=HIGHEST)) / self.alpha
        reward = self.beta * shaped  # [B, 2]
        return Loss(-logsigmoid(reward[:, 0] - reward[:, 1] - self.gamma), pair_metrics(reward))
