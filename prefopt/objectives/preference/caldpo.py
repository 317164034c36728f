"""Calibrated Direct Preference Optimization."""

from dataclasses import dataclass

from torch.nn.functional import logsigmoid

from prefopt.objectives.maths import pair_metrics
from prefopt.objectives.parts import log_ratios, reference_sums
from prefopt.support.domains import Positive
from prefopt.types import Batch, Loss, Needs, Outputs, Targets


@dataclass(frozen=True)
class CalDPO:
    """Calibrated DPO: DPO, and a regression of each log-ratio to ±1/(2β), so that their scale means something.

    L = −log σ(h) + (Δ_w − 1/(2β))² + (Δ_l + 1/(2β))²,  h = Δ_w − Δ_l,  Δ = log π(y|x) − log π_ref(y|x)

    Log-probs are summed over the tokens of a completion, [B, 2], chosen first. There is no β inside the logarithm. With π = π_ref
    the loss is ln 2 + 1/(2β²), 500,000.69 at the default: the regression rules, and gradients are clipped. The reward in the
    metrics is βΔ, whose calibrated values are ±½.

    Source: Xiao et al., arXiv 2412.14516; β = 0.001 is theirs. The official code (tengxiao1/Cal-DPO, scripts/dpo_trainer.py)
    halves both squares, which the paper does not; this follows the paper.

    Attributes:
        beta: β > 0: log-ratios are drawn to ±1/(2β) nats.
    """

    beta: Positive = 0.001
    needs = Needs(completions=2, ordered=True, reference=True)

    targets = reference_sums

    def __post_init__(self) -> None:
        if self.beta <= 0:
            raise ValueError(f"beta must be above 0, got {self.beta}: log-ratios are drawn to 1/(2 beta)")

    def loss(self, batch: Batch, policy: Outputs, targets: Targets) -> Loss:
        """Shapes: `policy.logps` is [B, 2, T]; the total is [B]."""
        delta = log_ratios(policy, targets)  # [B, 2]
        chosen, rejected = delta.unbind(-1)
        calibration = (chosen - 1 / (2 * self.beta)) ** 2 + (rejected + 1 / (2 * self.beta)) ** 2
        return Loss(calibration - logsigmoid(chosen - rejected), pair_metrics(self.beta * delta))
