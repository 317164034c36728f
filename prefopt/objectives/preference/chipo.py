"""χ²-Preference Optimization."""

from dataclasses import dataclass

from torch.nn.functional import logsigmoid

from prefopt.objectives.maths import pair_metrics
from prefopt.objectives.parts import log_ratios, reference_sums
from prefopt.support.domains import Positive
from prefopt.types import Batch, Loss, Needs, Outputs, Targets

HIGHEST = 20.0
"""Of the exponents: the authors' practical form clips them to [−88, 20]; below −88, e^Δ is 0 in float32 anyhow."""


@dataclass(frozen=True)
class ChiPO:
    """χ²-Preference Optimization: DPO whose link function adds the ratio to its logarithm, against overoptimisation.

    L = −log σ(clip(r_w − r_l, ±2R)),  r = βφ(ρ),  φ(z) = z + log z,  ρ = π(y|x) / π_ref(y|x)

    Log-probs are summed over the tokens of a completion, [B, 2], chosen first, and log ρ = Δ. The implied regulariser is
    χ² + KL: a completion that has become likelier than under the reference pays in proportion to ρ, not to log ρ. With π = π_ref
    the loss is ln 2. A pair whose logit is clipped has no gradient, on the wrong side too.

    Source: Huang et al., arXiv 2407.13399v3, algorithm 1. R bounds the reward there (R_max) and is left to the user, as is β.
    R = 10 is this project's choice: at a logit of 20 the loss is 2e-9. β = 0.1 is DPO's. The
    authors' practical link function, exp(clip(α log z, −88, 20)) + γ log z, has the α = γ = 1 of the algorithm here, and the clip.

    Attributes:
        beta: β, the strength of the χ² constraint.
        bound: R > 0, the largest reward; implied differences beyond ±2R are clipped.
    """

    beta: Positive = 0.1
    bound: Positive = 10.0
    needs = Needs(completions=2, ordered=True, reference=True)

    targets = reference_sums

    def __post_init__(self) -> None:
        if self.bound <= 0:
            raise ValueError(f"bound is the largest reward and must be above 0, got {self.bound}")

    def loss(self, batch: Batch, policy: Outputs, targets: Targets) -> Loss:
        """Shapes: `policy.logps` is [B, 2, T]; the total is [B]."""
        delta = log_ratios(policy, targets)  # [B, 2]
        reward = self.beta * (delta.clamp(max=HIGHEST).exp() + delta)
        logit = (reward[:, 0] - reward[:, 1]).clamp(-2 * self.bound, 2 * self.bound)
        return Loss(-logsigmoid(logit), pair_metrics(reward))
