"""Binary Classifier Optimization."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch.nn.functional import logsigmoid

from prefopt.objectives.parts import desirability, log_ratios, reference_sums
from prefopt.support.domains import Finite, NonNegative, Positive
from prefopt.types import Batch, Loss, Needs, Outputs, Targets


@dataclass(frozen=True)
class BCO:
    """Binary Classifier Optimization: is a completion's implicit reward above or below the average one?

    L = −Σ_D log σ(βΔ − δ) − Σ_U log σ(−(βΔ − δ)),  Δ = log π(y|x) − log π_ref(y|x)

    Log-probs are summed over tokens, [B, K]. D and U are the desirable and the undesirable completions of a prompt: of several
    those above and below the mean score (of a pair, the chosen and the rejected), of one the sign of its score. δ is the mean
    of all rewards βΔ seen so far in the run, this batch's included, without gradient; the metrics `delta` and `seen` are δ and
    their number.

    Source: Jung et al., arXiv 2404.04656 (the BCO loss), with δ = E[βΔ] by a running mean as in TRL's former BCOTrainer, which
    however counted each batch as one. TRL 1.16 has left it out, and its DPO loss `bco_pair` drops δ. β = 0.1 is DPO's; the paper
    has 0.01, by TRL's documentation. Its weights for undesirable completions of another distribution (UDM) are left out: they need
    a classifier of prompts.

    Attributes:
        beta: β.
        delta: δ so far; moved by `adapted`.
        seen: how many rewards δ is the mean of; moved by `adapted`.
    """

    beta: Positive = 0.1
    delta: Finite = 0.0
    seen: NonNegative = 0.0
    needs = Needs(completions=None, scores=True, reference=True, whole_batch=True, signs=True)
    targets = reference_sums

    def loss(self, batch: Batch, policy: Outputs, targets: Targets) -> Loss:
        """Shapes: `policy.logps` is [B, K, T]; the total is [B]."""
        reward = self.beta * log_ratios(policy, targets)  # [B, K]
        label = desirability(batch)
        judged = label != 0
        seen = self.seen + judged.sum()
        delta = (self.seen * self.delta + reward.detach().masked_fill(~judged, 0).sum()) / seen.clamp(min=1)
        total = -(logsigmoid(label * (reward - delta)) * judged).sum(-1)
        metrics = {
            "rewards/desirable": torch.where(label > 0, reward.detach(), torch.nan).nanmean(-1),
            "rewards/undesirable": torch.where(label < 0, reward.detach(), torch.nan).nanmean(-1),
            "delta": delta.expand(len(batch)),
            "seen": seen.to(reward).expand(len(batch)),
        }
        return Loss(total, metrics)

    def adapted(self, metrics: Mapping[str, float]) -> Self:
        """With this batch's rewards in the running mean."""
        return replace(self, delta=metrics["delta"], seen=metrics["seen"])
