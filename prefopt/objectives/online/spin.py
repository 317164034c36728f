"""Self-play fine-tuning."""

from dataclasses import dataclass

import torch
from torch.nn.functional import logsigmoid

from prefopt.objectives.maths import pair_metrics
from prefopt.objectives.online.advantage import came_from
from prefopt.objectives.parts import log_ratios, reference_sums
from prefopt.support.domains import Positive
from prefopt.types import Batch, Loss, Needs, Outputs, Targets


@dataclass(frozen=True)
class SPIN:
    """Self-play fine-tuning: tells demonstrations from the completions of its own last iterate, and wins when it cannot.

    L = −log σ(β(Δ_real − Δ_generated)),  Δ = log π(y|x) − log π_t(y|x)

    Log-probs are summed over tokens, [B, 2]: the completion whose `origin` is dataset is real, the other one generated, whichever
    stands first. Nobody scores them. π_t, the last iterate, is the reference, and has to move (`reference.every`); the
    generated completions are its samples, which those of the current policy are at the start of an iteration only. With π = π_t
    the loss is ln 2. Both completions are learnt from. The fixed point is the data's distribution, so this imitates, without
    preferences.

    Source: Chen et al., arXiv 2401.01335v3, with the logistic loss; its λ is β. 0.1 is DPO's.

    Attributes:
        beta: β.
    """

    beta: Positive = 0.1
    needs = Needs(completions=2, reference=True, rollouts=True, columns=("origin",))

    targets = reference_sums

    def loss(self, batch: Batch, policy: Outputs, targets: Targets) -> Loss:
        """Shapes: `policy.logps` is [B, 2, T]; the total is [B]."""
        reward = self.beta * log_ratios(policy, targets)
        first_is_real = came_from(batch, "dataset")[:, :1]
        pair = torch.where(first_is_real, reward, reward.flip(1))  # [B, 2], real first
        return Loss(-logsigmoid(pair[:, 0] - pair[:, 1]), pair_metrics(pair))
