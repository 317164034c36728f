"""DPO of whole rankings."""

from dataclasses import dataclass

from prefopt.objectives.maths import list_metrics, plackett_luce
from prefopt.objectives.parts import log_ratios, reference_sums
from prefopt.support.domains import Positive
from prefopt.types import Batch, Loss, Needs, Outputs, Targets


@dataclass(frozen=True)
class PlackettLuceDPO:
    """DPO of whole rankings: the Plackett–Luce likelihood of the order under the implicit rewards.

    L = −Σ_k [βΔ_k − log Σ_{j≥k} exp(βΔ_j)],  Δ = log π(y|x) − log π_ref(y|x)

    Completions are ordered, best first; log-probs are summed over tokens, [B, K], and absent completions left out. With two
    completions it is DPO. The last place contributes 0.

    Source: Rafailov et al., arXiv 2305.18290v3, eq. 20 (appendix A.3).

    Attributes:
        beta: β, the strength of the implied KL constraint.
    """

    beta: Positive = 0.1
    needs = Needs(completions=None, ordered=True, reference=True)
    targets = reference_sums

    def loss(self, batch: Batch, policy: Outputs, targets: Targets) -> Loss:
        """Shapes: `policy.logps` is [B, K, T]; the total is [B]."""
        reward = self.beta * log_ratios(policy, targets)  # [B, K]
        return Loss(-plackett_luce(reward, batch.present), list_metrics(reward, batch))
