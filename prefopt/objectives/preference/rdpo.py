"""Length-regularised DPO."""

from dataclasses import dataclass

from torch.nn.functional import logsigmoid

from prefopt.objectives.maths import pair_metrics
from prefopt.objectives.parts import log_ratios, reference_sums
from prefopt.support.domains import NonNegative, Positive
from prefopt.types import Batch, Loss, Needs, Outputs, Targets


@dataclass(frozen=True)
class RDPO:
    """Length-regularised DPO: what length alone explains of a preference need not be learnt.

    L = −log σ(βh + α(|y_w| − |y_l|)),  h = Δ_w − Δ_l,  Δ = log π(y|x) − log π_ref(y|x)

    Log-probs are summed over the tokens of a completion, [B, 2], chosen first; |y| is its number of tokens. The optimum of
    E[r − α|y|] − β KL has r = βΔ + α|y| + const(x), which put into Bradley–Terry is L: hence the plus. A longer chosen completion
    pulls less, a shorter one more. α = 0 is DPO.

    Source: Park et al., arXiv 2403.19159v2. β = 0.1 is DPO's. α is a price per token and is swept in the paper; α = 0.05 is
    the smallest of the values that SimPO (Meng et al., 2405.14734) tries for it, 0.05 to 1: with 20 tokens of difference it
    weighs as much as a margin of 10 nats at β = 0.1.

    Attributes:
        beta: β, the strength of the implied KL constraint.
        alpha: α ≥ 0, what a token costs, in units of reward.
    """

    beta: Positive = 0.1
    alpha: NonNegative = 0.05
    needs = Needs(completions=2, ordered=True, reference=True)

    targets = reference_sums

    def __post_init__(self) -> None:
        if self.alpha < 0:
            raise ValueError(f"alpha must not be below 0, got {self.alpha}: it would reward length")

    def loss(self, batch: Batch, policy: Outputs, targets: Targets) -> Loss:
        """Shapes: `policy.logps` is [B, 2, T]; the total is [B]."""
        reward = self.beta * log_ratios(policy, targets)  # [B, 2]
        length = batch.mask.sum(-1).to(reward.dtype)
        logit = reward[:, 0] - reward[:, 1] + self.alpha * (length[:, 0] - length[:, 1])
        return Loss(-logsigmoid(logit), pair_metrics(reward))
