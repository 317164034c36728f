"""Sequence Likelihood Calibration."""

from dataclasses import dataclass

from prefopt.objectives.maths import pair_metrics
from prefopt.objectives.parts import nothing
from prefopt.support.domains import NonNegative
from prefopt.types import Batch, Loss, Needs, Outputs, Targets


@dataclass(frozen=True)
class SLiC:
    """SLiC-HF: a margin of log-probs by a hinge, and imitation of the chosen; no reference.

    L = max(0, δ − log π(y_w|x) + log π(y_l|x)) − λ log π(y_w|x)

    Log-probs are summed over tokens, in both terms, [B, 2], chosen first. The paper imitates a separate target y_ref; the chosen
    completion stands for it, as where SFT data are the preferred answers.

    On the pocket world (experiments/objectives) it loses reward: without a reference, sums are told apart by length, and
    its texts grow.

    Source: Zhao et al., arXiv 2305.10425v1; the sums, δ = 1 and λ = 0.1 are those of HALOs (ContextualAI/HALOs,
    config/loss/slic.yaml). `Hinge` (RSO) is this hinge on log-ratios to a reference, and what TRL's DPO trainer calls `hinge`;
    that of its CPO trainer is this one with δ = 1 and λ = 0, if β = 1.

    Attributes:
        delta: δ, the margin that is asked for, in nats.
        lam: λ, the weight of imitation.
    """

    delta: NonNegative = 1.0
    lam: NonNegative = 0.1
    needs = Needs(completions=2, ordered=True)
    targets = nothing

    def loss(self, batch: Batch, policy: Outputs, targets: Targets) -> Loss:
        """Shapes: `policy.logps` is [B, 2, T]; the total is [B]."""
        logps = policy.sum()  # [B, 2]
        return Loss((self.delta - logps[:, 0] + logps[:, 1]).relu() - self.lam * logps[:, 0], pair_metrics(logps))
