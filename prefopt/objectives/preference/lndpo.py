"""Length-normalised DPO."""

from dataclasses import dataclass

from torch.nn.functional import logsigmoid

from prefopt.objectives.maths import pair_metrics
from prefopt.objectives.parts import reference_means
from prefopt.support.domains import Positive
from prefopt.types import Batch, Loss, Needs, Outputs, Targets


@dataclass(frozen=True)
class LNDPO:
    """Length-normalised DPO: the implicit reward is a mean over tokens, so that it does not grow with length.

    L = −log σ(β(Δ̄_w − Δ̄_l)),  Δ̄ = (log π(y|x) − log π_ref(y|x)) / |y|

    Each side is divided by its own number of tokens, [B, 2], chosen first. With π = π_ref the loss is ln 2.

    Source: Lambert et al. (Tülu 3), arXiv 2411.15124v3, §5; β = 5 is theirs, about 50 times the β of summed log-probs. TRL 1.16
    has this loss as `sigmoid_norm`.

    Attributes:
        beta: β, the strength of the implied constraint, per token.
    """

    beta: Positive = 5.0
    needs = Needs(completions=2, ordered=True, reference=True)

    targets = reference_means

    def loss(self, batch: Batch, policy: Outputs, targets: Targets) -> Loss:
        """Shapes: `policy.logps` is [B, 2, T]; the total is [B]."""
        reward = self.beta * (policy.mean() - targets.rows["reference"])  # [B, 2]
        return Loss(-logsigmoid(reward[:, 0] - reward[:, 1]), pair_metrics(reward))
