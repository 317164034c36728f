"""Contrastive Preference Optimization."""

from dataclasses import dataclass

from torch.nn.functional import logsigmoid

from prefopt.objectives.maths import pair_metrics
from prefopt.objectives.parts import nothing
from prefopt.support.domains import NonNegative, Positive
from prefopt.types import Batch, Loss, Needs, Outputs, Targets


@dataclass(frozen=True)
class CPO:
    """Contrastive Preference Optimization: DPO with a uniform reference, and imitation of the chosen.

    L = −log σ(β(log π(y_w|x) − log π(y_l|x))) − α l̄_w,  l̄ = mean over tokens of log π(y_t|x, y_<t)

    Log-probs of the first term are summed over tokens, [B, 2], chosen first. The second is the mean of each chosen completion's own
    tokens, so that every prompt weighs the same.

    Source: Xu et al., arXiv 2401.08417v4, eq. 5 (L_prefer, eq. 3, and L_NLL); β = 0.1 is theirs (§4.2), and so is that both terms
    weigh the same, α = 1. Eq. 5 has −log π(y_w|x), the sum, for the second; TRL 1.16 averages over all tokens of the chosen
    completions of a micro-batch, so that long ones weigh more and the result depends on the micro-batch. This is between the two.

    Attributes:
        beta: β.
        alpha: α, the weight of imitation.
    """

    beta: Positive = 0.1
    alpha: NonNegative = 1.0
    needs = Needs(completions=2, ordered=True)
    targets = nothing

    def loss(self, batch: Batch, policy: Outputs, targets: Targets) -> Loss:
        """Shapes: `policy.logps` is [B, 2, T]; the total is [B]."""
        reward = self.beta * policy.sum()  # [B, 2]
        total = -logsigmoid(reward[:, 0] - reward[:, 1]) - self.alpha * policy.mean()[:, 0]
        return Loss(total, pair_metrics(reward))
