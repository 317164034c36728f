"""Identity Preference Optimization."""

from dataclasses import dataclass

from prefopt.objectives.maths import pair_metrics
from prefopt.objectives.parts import log_ratios, reference_means, reference_sums
from prefopt.support.domains import Positive
from prefopt.types import Batch, Loss, Needs, Outputs, Targets


@dataclass(frozen=True)
class IPO:
    """Identity Preference Optimization: regresses the difference of log-ratios to 1/(2τ), so that it cannot run away.

    L = (h − 1/(2τ))²,  h = Δ_w − Δ_l,  Δ = log π(y|x) − log π_ref(y|x)

    Log-probs are summed over the tokens of a completion, [B, 2], chosen first. With π = π_ref the loss is 1/(4τ²), 25 at the
    default. Beyond h = 1/(2τ) it rises again: a pair told apart too well is pulled together.

    Source: Azar et al., arXiv 2310.12036v2, eq. 17; τ is swept there, 0.1 is the usual choice of later code. Mitchell's DPO code,
    OpenRLHF, oat and NeMo-Aligner sum as here and as in the paper; TRL and HALOs divide each side by its length: `IPOMean`.

    Attributes:
        tau: τ > 0, the strength of the KL constraint: the margin asked for is 1/(2τ) nats.
    """

    tau: Positive = 0.1
    needs = Needs(completions=2, ordered=True, reference=True)

    targets = reference_sums

    def __post_init__(self) -> None:
        _check_tau(self.tau)

    def loss(self, batch: Batch, policy: Outputs, targets: Targets) -> Loss:
        """Shapes: `policy.logps` is [B, 2, T]; the total is [B]."""
        delta = log_ratios(policy, targets)  # [B, 2]
        total = (delta[:, 0] - delta[:, 1] - 1 / (2 * self.tau)) ** 2  # eq. 17
        return Loss(total, pair_metrics(self.tau * delta))


@dataclass(frozen=True)
class IPOMean:
    """IPO with log-ratios averaged over tokens, so that the margin asked for does not depend on length.

    L = (h̄ − 1/(2τ))²,  h̄ = Δ_w/|y_w| − Δ_l/|y_l|,  Δ = log π(y|x) − log π_ref(y|x)

    Each side is divided by its own number of tokens, [B, 2], chosen first. The same τ asks for far more than in `IPO`: at 0.1, 5
    nats *a token*, which a policy hardly reaches, so that the pull stays nearly constant.

    Source: Azar et al., arXiv 2310.12036v2, eq. 17, does not say this. TRL 1.16 and HALOs do it; TRL's source says that the
    authors confirmed that the paper's results are of this form. τ = 0.1 is TRL's default.

    Attributes:
        tau: τ > 0: the margin asked for is 1/(2τ) nats a token.
    """

    tau: Positive = 0.1
    needs = Needs(completions=2, ordered=True, reference=True)

    targets = reference_means

    def __post_init__(self) -> None:
        _check_tau(self.tau)

    def loss(self, batch: Batch, policy: Outputs, targets: Targets) -> Loss:
        """Shapes: `policy.logps` is [B, 2, T]; the total is [B]."""
        delta = policy.mean() - targets.rows["reference"]  # [B, 2]
        total = (delta[:, 0] - delta[:, 1] - 1 / (2 * self.tau)) ** 2
        return Loss(total, pair_metrics(self.tau * delta))


def _check_tau(tau: float) -> None:
    if tau <= 0:
        raise ValueError(f"tau must be above 0, got {tau}: the margin asked for is 1/(2 tau)")
