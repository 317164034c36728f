"""DPO for labels of which some are wrong: conservative and robust DPO."""

from dataclasses import dataclass

from torch.nn.functional import logsigmoid

from prefopt.objectives.maths import pair_metrics
from prefopt.objectives.parts import log_ratios, reference_sums
from prefopt.support.domains import Noise, Positive
from prefopt.types import Batch, Loss, Needs, Outputs, Targets


@dataclass(frozen=True)
class CDPO:
    """Conservative DPO: cross-entropy to a label that is wrong with probability ε.

    L = −(1 − ε) log σ(βh) − ε log σ(−βh),  h = Δ_w − Δ_l,  Δ = log π(y|x) − log π_ref(y|x)

    Log-probs are summed over the tokens of a completion, [B, 2], chosen first. The loss is least at βh = logit(1 − ε), so that
    the margin stays finite; `RobustDPO` corrects the same noise without that limit. ε = 0 is DPO.

    Source: Mitchell, “A note on DPO with noisy preferences & relationship to IPO” (2023), ericmitchell.ai/cdpo.pdf, which
    smooths the labels of Rafailov et al., arXiv 2305.18290v3, eq. 7. β = 0.1 is DPO's. ε = 0.2 is this project's choice: the
    note leaves it to what is known of the labels. TRL 1.16's `sigmoid` ignores its `label_smoothing`; the authors' DPO code
    applies it, as here.

    Attributes:
        beta: β, the strength of the implied KL constraint.
        epsilon: ε, the share of labels taken to be wrong; 0 ≤ ε < ½.
    """

    beta: Positive = 0.1
    epsilon: Noise = 0.2
    needs = Needs(completions=2, ordered=True, reference=True)

    targets = reference_sums

    def __post_init__(self) -> None:
        _check_epsilon(self.epsilon)

    def loss(self, batch: Batch, policy: Outputs, targets: Targets) -> Loss:
        """Shapes: `policy.logps` is [B, 2, T]; the total is [B]."""
        reward = self.beta * log_ratios(policy, targets)  # [B, 2]
        logit = reward[:, 0] - reward[:, 1]
        total = -(1 - self.epsilon) * logsigmoid(logit) - self.epsilon * logsigmoid(-logit)
        return Loss(total, pair_metrics(reward))


@dataclass(frozen=True)
class RobustDPO:
    """Robust DPO: an unbiased estimate of the DPO loss on the true labels, from labels flipped with probability ε.

    L = [−(1 − ε) log σ(βh) + ε log σ(−βh)] / (1 − 2ε),  h = Δ_w − Δ_l,  Δ = log π(y|x) − log π_ref(y|x)

    Log-probs are summed over the tokens of a completion, [B, 2], chosen first. The mean of L over a label and its flip, with
    weights 1 − ε and ε, is the DPO loss of the label. The second term is positive: the loss falls without bound as h grows,
    by εβ/(1 − 2ε) for each nat, so that it may become negative and does not tell how well the data are fitted.

    Source: Chowdhury et al., arXiv 2403.00409v2, §3.1. ε = 0.1 is that of their §6. β = 0.1 is DPO's; the authors have 0.01,
    for GPT-2 at a learning rate of 1e-3 (their appendix B).

    Attributes:
        beta: β, the strength of the implied KL constraint.
        epsilon: ε, the share of labels taken to be flipped; 0 ≤ ε < ½, since at ½ labels say nothing.
    """

    beta: Positive = 0.1
    epsilon: Noise = 0.1
    needs = Needs(completions=2, ordered=True, reference=True)

    targets = reference_sums

    def __post_init__(self) -> None:
        _check_epsilon(self.epsilon)

    def loss(self, batch: Batch, policy: Outputs, targets: Targets) -> Loss:
        """Shapes: `policy.logps` is [B, 2, T]; the total is [B]."""
        reward = self.beta * log_ratios(policy, targets)  # [B, 2]
        logit = reward[:, 0] - reward[:, 1]
        total = -(1 - self.epsilon) * logsigmoid(logit) + self.epsilon * logsigmoid(-logit)
        return Loss(total / (1 - 2 * self.epsilon), pair_metrics(reward))


def _check_epsilon(epsilon: float) -> None:
    if not 0 <= epsilon < 0.5:
        raise ValueError(f"epsilon is the share of wrong labels and must be at least 0 and below 0.5, got {epsilon}")
