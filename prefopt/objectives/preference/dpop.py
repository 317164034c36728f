"""DPO-Positive, the objective of Smaug."""

from dataclasses import dataclass

from torch.nn.functional import logsigmoid

from prefopt.objectives.maths import pair_metrics
from prefopt.objectives.parts import log_ratios, reference_sums
from prefopt.support.domains import NonNegative, Positive
from prefopt.types import Batch, Loss, Needs, Outputs, Targets


@dataclass(frozen=True)
class DPOP:
    """DPO-Positive: DPO that is penalised when the chosen completion becomes less likely than under the reference.

    L = −log σ(β[h − λ max(0, −Δ_w)]),  h = Δ_w − Δ_l,  Δ = log π(y|x) − log π_ref(y|x)

    Log-probs are summed over the tokens of a completion, [B, 2], chosen first. The penalty is inside β: at the defaults each nat
    that the chosen completion loses costs 15 in the logit. λ = 0 is DPO; with π = π_ref the loss is ln 2. Not antisymmetric: a
    pair and its swap may both have a negative logit. The reward in the metrics is βΔ.

    Source: Pal et al. (Smaug), arXiv 2402.13228v2; β = 0.3 and λ = 50 are theirs.

    Attributes:
        beta: β, the strength of the implied KL constraint.
        lam: λ ≥ 0, the weight of the penalty.
    """

    beta: Positive = 0.3
    lam: NonNegative = 50.0
    needs = Needs(completions=2, ordered=True, reference=True)

    targets = reference_sums

    def __post_init__(self) -> None:
        if self.lam < 0:
            raise ValueError(f"lam must not be below 0, got {self.lam}: it would reward what it is to prevent")

    def loss(self, batch: Batch, policy: Outputs, targets: Targets) -> Loss:
        """Shapes: `policy.logps` is [B, 2, T]; the total is [B]."""
        delta = log_ratios(policy, targets)  # [B, 2]
        chosen, rejected = delta.unbind(-1)
        logit = self.beta * (chosen - rejected - self.lam * (-chosen).relu())
        return Loss(-logsigmoid(logit), pair_metrics(self.beta * delta))
