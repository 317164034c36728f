"""Odds Ratio Preference Optimization."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from prefopt.objectives.maths import pair_metrics
from prefopt.objectives.parts import nothing
from prefopt.support.domains import NonNegative
from prefopt.types import Batch, Loss, Needs, Outputs, Targets


@dataclass(frozen=True)
class ORPO:
    """Odds Ratio Preference Optimization: imitation of the chosen, and an odds ratio against the rejected; no reference.

    L = −l̄_w − λ log σ(log odds_w − log odds_l),  log odds = l̄ − log(1 − exp l̄),  l̄ = mean over tokens of log π(y_t|x, y_<t)

    l̄ is [B, 2], chosen first. Each prompt's likelihood is the mean over its own chosen completion's tokens; every prompt weighs
    the same. The metric `log_odds_ratio` is log odds_w − log odds_l; the reward is λ l̄.

    Source: Hong et al., arXiv 2403.07691v2, eq. 6 and 7; λ = 0.1 is that of its Mistral models (§6.1; 0.2 and
    0.25 for others); the official code's own default is 1. TRL 1.16 takes the likelihood over all tokens of the chosen rows of a
    micro-batch, *prompts included*; so does the official code (xfactlab/orpo), unless told to leave prompts out.

    Attributes:
        lam: λ, the weight of the odds ratio.
    """

    lam: NonNegative = 0.1
    needs = Needs(completions=2, ordered=True)
    targets = nothing

    def loss(self, batch: Batch, policy: Outputs, targets: Targets) -> Loss:
        """Shapes: `policy.logps` is [B, 2, T]; the total is [B]."""
        mean = policy.mean()  # [B, 2]
        odds = mean - log1mexp(mean)
        total = -mean[:, 0] - self.lam * logsigmoid(odds[:, 0] - odds[:, 1])  # eq. 6
        ratio = (odds[:, 0] - odds[:, 1]).detach()
        return Loss(total, {**pair_metrics(self.lam * mean), "log_odds_ratio": ratio})


def log1mexp(x: Tensor) -> Tensor:
    """log(1 − exp x) for x < 0, accurate on both ends (Mächler 2012); x above −1e-7 counts as that, a certain completion."""
    x = x.clamp(max=-1e-7)
    small = x > -math.log(2)
    near, far = torch.where(small, x, -1.0), torch.where(small, -1.0, x)
    return torch.where(small, torch.log(-torch.expm1(near)), torch.log1p(-torch.exp(far)))
