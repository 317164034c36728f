"""DPO on soft labels."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from prefopt.objectives.maths import pair_metrics
from prefopt.objectives.parts import log_ratios, reference_sums
from prefopt.support.domains import Positive
from prefopt.types import Batch, Loss, Needs, Outputs, Targets


@dataclass(frozen=True)
class SoftDPO:
    """DPO on soft labels: cross-entropy to the probability that one completion beats the other.

    L = −p log σ(βh) − (1 − p) log σ(−βh),  p = P(y_0 beats y_1),  h = Δ_0 − Δ_1,  Δ = log π(y|x) − log π_ref(y|x)

    Log-probs are summed over the tokens of a completion, [B, 2]; the pair has no order. p is `batch.preference[:, 0, 1]`, from a
    judge or the share of raters. The loss is least at βh = logit p. p = 1 is DPO, p = 1 − ε is `CDPO`. The metrics call the
    completion with p > ½ chosen, and do not apply to ties.

    Source: Lee et al. (RLAIF), arXiv 2309.00267v3, for soft labels from a judge's probabilities, there for a reward model;
    this is their cross-entropy with DPO's implicit reward (2305.18290v3, eq. 7), and β = 0.1 is DPO's.

    Attributes:
        beta: β, the strength of the implied KL constraint.
    """

    beta: Positive = 0.1
    needs = Needs(completions=2, preference=True, reference=True)

    targets = reference_sums

    def loss(self, batch: Batch, policy: Outputs, targets: Targets) -> Loss:
        """Shapes: `policy.logps` is [B, 2, T], `batch.preference` [B, 2, 2]; the total is [B]."""
        assert batch.preference is not None
        p = batch.preference[:, 0, 1]
        reward = self.beta * log_ratios(policy, targets)  # [B, 2]
        logit = reward[:, 0] - reward[:, 1]
        return Loss(-p * logsigmoid(logit) - (1 - p) * logsigmoid(-logit), metrics_by_preference(reward, p))


def metrics_by_preference(reward: Tensor, p: Tensor) -> Mapping[str, Tensor]:
    """`pair_metrics` of pairs without an order, the likelier winner as the chosen one; NaN for ties.

    Args:
        reward: [B, 2], (implicit) rewards.
        p: [B], the probability that the first beats the second.
    """
    ranked = torch.where((p < 0.5)[:, None], reward.flip(1), reward)
    return {name: value.masked_fill(p == 0.5, torch.nan) for name, value in pair_metrics(ranked).items()}
