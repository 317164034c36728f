"""Discovered Preference Optimization."""

from dataclasses import dataclass
from typing import ClassVar

from torch.nn.functional import logsigmoid

from prefopt.objectives.maths import pair_metrics
from prefopt.objectives.parts import log_ratios, reference_sums
from prefopt.support.domains import Positive, PositiveShare
from prefopt.types import Batch, Loss, Needs, Outputs, Targets


@dataclass(frozen=True)
class DiscoPOP:
    """Discovered Preference Optimization: a blend of logistic and exponential loss that a language model proposed.

    L = (1 − m)(−log σ(u)) + m e^(−u),  m = σ(u/τ),  u = βh,  h = Δ_w − Δ_l,  Δ = log π(y|x) − log π_ref(y|x)

    Log-probs are summed over the tokens of a completion, [B, 2], chosen first. Pairs told apart badly get the logistic loss,
    pairs told apart well the exponential one. Not convex: the loss has a local minimum at u/τ ≈ −2.37 and a local maximum at
    u/τ ≈ 1.44, and rises in between, so that a pair at the reference, where the loss is ½(1 + ln 2), is first pulled the
    wrong way.

    On the pocket world (experiments/objectives) it loses reward for that reason: all pairs start on the wrong side
    of the maximum.

    Source: Lu et al., arXiv 2406.08414v3, eq. 5 (“log-ratio modulated loss”); β = 0.05 (appendix B.1) and τ = 0.05 (appendix E)
    are theirs. The blend is computed as e^(log m − u), which does not overflow for τ ≤ 1.

    Attributes:
        beta: β, the strength of the implied KL constraint.
        tau: τ, from 0 (excluded) to 1, the temperature of the blend.
    """

    beta: Positive = 0.05
    tau: PositiveShare = 0.05
    needs = Needs(completions=2, ordered=True, reference=True)
    contract_exceptions: ClassVar = {
        "prefers chosen": "by design: the loss rises with the margin between u/τ = −2.37 and 1.44"
    }

    targets = reference_sums

    def __post_init__(self) -> None:
        if not 0 < self.tau <= 1:
            raise ValueError(f"tau must be above 0 and at most 1, got {self.tau}: beyond 1 the loss overflows")

    def loss(self, batch: Batch, policy: Outputs, targets: Targets) -> Loss:
        """Shapes: `policy.logps` is [B, 2, T]; the total is [B]."""
        reward = self.beta * log_ratios(policy, targets)  # [B, 2]
        logit = reward[:, 0] - reward[:, 1]
        logistic = -(-logit / self.tau).sigmoid() * logsigmoid(logit)
        exponential = (logsigmoid(logit / self.tau) - logit).exp()
        return Loss(logistic + exponential, pair_metrics(reward))
