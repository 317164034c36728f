"""Direct Preference Optimization."""

from dataclasses import dataclass

from torch.nn.functional import logsigmoid

from prefopt.objectives.maths import pair_metrics
from prefopt.objectives.parts import log_ratios, reference_sums
from prefopt.support.domains import Positive
from prefopt.types import Batch, Loss, Needs, Outputs, Targets


@dataclass(frozen=True)
class DPO:
    """Direct Preference Optimization: a classifier of pairs whose logit is the implicit reward's margin.

    L = −log σ(β(Δ_w − Δ_l)),  Δ = log π(y|x) − log π_ref(y|x)

    Log-probs are summed over the tokens of a completion, [B, 2], chosen first. βΔ is the implicit reward. With π = π_ref the
    loss is ln 2.

    Source: Rafailov et al., arXiv 2305.18290v3, eq. 7. β = 0.1 is the authors' default (§6, appendix B).

    Attributes:
        beta: β, the strength of the implied KL constraint; larger keeps the policy nearer to the reference.
    """

    beta: Positive = 0.1
    needs = Needs(completions=2, ordered=True, reference=True)

    targets = reference_sums

    def loss(self, batch: Batch, policy: Outputs, targets: Targets) -> Loss:
        """Shapes: `policy.logps` is [B, 2, T]; the total is [B]."""
        reward = self.beta * log_ratios(policy, targets)  # [B, 2]
        return Loss(-logsigmoid(reward[:, 0] - reward[:, 1]), pair_metrics(reward))  # eq. 7
