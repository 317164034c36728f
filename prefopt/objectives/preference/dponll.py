"""DPO with a likelihood term: Iterative Reasoning and Regularised Preference Optimization."""

from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

from torch.nn.functional import logsigmoid

from prefopt.objectives.maths import pair_metrics
from prefopt.objectives.parts import log_ratios, reference_sums
from prefopt.support.domains import NonNegative, Positive
from prefopt.types import Batch, Loss, Needs, Outputs, Targets

Normaliser = Literal["length", "sum"]


@dataclass(frozen=True)
class DPONLL:
    """DPO plus the negative log-likelihood of the chosen completion, which keeps it from becoming less likely.

    L = −log σ(β(Δ_w − Δ_l)) − α log π(y_w|x)/n,  Δ = log π(y|x) − log π_ref(y|x),  n = |y_w| ("length") or 1 ("sum")

    Log-probs are summed over the tokens of a completion, [B, 2], chosen first; |y_w| counts tokens, EOS included. The normaliser
    differs everywhere and changes what α means by the length of a completion, so it is a field of its own:

    - Iterative Reasoning PO, arXiv 2404.19733v3, eq. 1: "length", α = 1, β = 0.1: the defaults. |y_w| there is the whole response,
      reasoning and answer. Their references move from one round to the next; in a recipe that is the next run's.
    - Regularised PO, arXiv 2405.16436: "sum" in the main part, α = 0.005, β = 0.01 (YSLIU627/Regularized-Preference-Optimization,
      the alignment-handbook recipe for Zephyr beta); "length" in appendix F, α = 0.2, β = 0.5 (its OpenRLHF script), which its
      README calls better in general.

    TRL 1.16 (`loss_type=["sigmoid", "sft"]`) averages over all chosen tokens of what one process forwards at once, so that long
    completions weigh more and the result depends on the micro-batch; the terms DPO and SFT of one recipe average so over the
    logical batch. Both papers call this RPO: see `RPO` for the others of that name.

    Source: Pang et al., arXiv 2404.19733v3, eq. 1; Liu et al., arXiv 2405.16436.

    Attributes:
        beta: β, the strength of the implied KL constraint.
        alpha: α ≥ 0, the weight of the likelihood; 0 is DPO.
        normaliser: n: "length" divides each completion's by its tokens, "sum" by nothing.
    """

    beta: Positive = 0.1
    alpha: NonNegative = 1.0
    normaliser: Normaliser = "length"
    needs = Needs(completions=2, ordered=True, reference=True)
    contract_exceptions: ClassVar = {
        "starts at the reference": "its second term imitates the chosen completion, whatever the reference says",
    }

    targets = reference_sums

    def __post_init__(self) -> None:
        if self.alpha < 0:
            raise ValueError(
                f"alpha must be at least 0, got {self.alpha}: below, it makes the chosen completion unlikely"
            )
        if self.normaliser not in get_args(Normaliser):
            raise ValueError(f"normaliser must be one of {', '.join(get_args(Normaliser))}, got {self.normaliser!r}")

    def loss(self, batch: Batch, policy: Outputs, targets: Targets) -> Loss:
        """Shapes: `policy.logps` is [B, 2, T]; the total is [B]."""
        reward = self.beta * log_ratios(policy, targets)  # [B, 2]
        mean = -policy.mean()[:, 0]
        nll = mean if self.normaliser == "length" else -policy.sum()[:, 0]
        total = -logsigmoid(reward[:, 0] - reward[:, 1]) + self.alpha * nll
        return Loss(total, {**pair_metrics(reward), "nll": mean.detach()})
