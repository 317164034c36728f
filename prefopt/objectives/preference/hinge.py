"""The hinge loss of Statistical Rejection Sampling Optimization."""

from dataclasses import dataclass

from prefopt.objectives.maths import pair_metrics
from prefopt.objectives.parts import log_ratios, reference_sums
from prefopt.support.domains import Positive
from prefopt.types import Batch, Loss, Needs, Outputs, Targets


@dataclass(frozen=True)
class Hinge:
    """RSO's hinge-norm loss: DPO with a hinge in place of the logistic loss.

    L = max(0, 1 − βh),  h = Δ_w − Δ_l,  Δ = log π(y|x) − log π_ref(y|x)

    Log-probs are summed over the tokens of a completion, [B, 2], chosen first. A pair with βh ≥ 1 has no gradient. With
    π = π_ref the loss is 1.

    Source: Liu et al., arXiv 2309.06657v2, the loss “hinge-norm” (γ there is β here). β = 0.1 is DPO's; the authors have 0.05. TRL
    calls this loss `hinge` and files it under SLiC-HF (2305.10425) too; that paper's own loss has no reference: see SLiC.

    Attributes:
        beta: β > 0: pairs are told apart until h = 1/β nats.
    """

    beta: Positive = 0.1
    needs = Needs(completions=2, ordered=True, reference=True)

    targets = reference_sums

    def loss(self, batch: Batch, policy: Outputs, targets: Targets) -> Loss:
        """Shapes: `policy.logps` is [B, 2, T]; the total is [B]."""
        reward = self.beta * log_ratios(policy, targets)  # [B, 2]
        return Loss((1 - reward[:, 0] + reward[:, 1]).relu(), pair_metrics(reward))
