"""Token-level Direct Preference Optimization."""

from dataclasses import dataclass

from torch import Tensor
from torch.nn.functional import logsigmoid

from prefopt.objectives.maths import pair_metrics
from prefopt.objectives.parts import log_ratios, reference_sums
from prefopt.support.domains import NonNegative, Positive
from prefopt.types import Batch, Loss, Needs, Outputs, Targets


@dataclass(frozen=True)
class TDPO1:
    """Token-level DPO: a margin that also holds the difference of the two completions' sequential KL.

    L = −log σ(β[h − (K_l − K_w)]),  h = Δ_w − Δ_l,  Δ = log π(y|x) − log π_ref(y|x),
    K = Σ_t KL(π_ref(·|x, y_<t) ‖ π(·|x, y_<t))

    Sums over the tokens of a completion, [B, 2], chosen first; each KL is exact, over the whole vocabulary, with gradient through
    π. With π = π_ref the loss is ln 2. The reward in the metrics is βΔ.

    Source: Zeng et al., arXiv 2404.11999v5, TDPO1: u − δ with u = βh, δ = β(K_l − K_w). β = 0.1 is that of the official code.

    Attributes:
        beta: β, the strength of the KL constraint.
    """

    beta: Positive = 0.1
    needs = Needs(completions=2, ordered=True, reference=True, statistics=frozenset({"kl_ref_policy"}))

    targets = reference_sums

    def loss(self, batch: Batch, policy: Outputs, targets: Targets) -> Loss:
        """Shapes: `policy.logps` and the statistic are [B, 2, T]; the total is [B]."""
        reward = self.beta * log_ratios(policy, targets)  # [B, 2]
        kl = self.beta * _sequential_kl(policy)
        logit = reward[:, 0] - reward[:, 1] - (kl[:, 1] - kl[:, 0])
        return Loss(-logsigmoid(logit), pair_metrics(reward))


@dataclass(frozen=True)
class TDPO2:
    """Token-level DPO, second form: the chosen completion's KL is a constant, and the difference is weighted.

    L = −log σ(β[h − α(K_l − sg K_w)]),  h = Δ_w − Δ_l,  Δ = log π(y|x) − log π_ref(y|x),
    K = Σ_t KL(π_ref(·|x, y_<t) ‖ π(·|x, y_<t))

    Shapes and K as in `TDPO1`. sg stops the gradient: TDPO1 can widen its margin by raising K_w, this cannot. At α = 1 the
    value is TDPO1's; at α = 0 this is DPO.

    Source: Zeng et al., arXiv 2404.11999v5, TDPO2. β = 0.1 and α = 0.5 are those of the official code (config/loss/tdpo.yaml).

    Attributes:
        beta: β, the strength of the KL constraint.
        alpha: α ≥ 0, the weight of the difference of KLs.
    """

    beta: Positive = 0.1
    alpha: NonNegative = 0.5
    needs = Needs(completions=2, ordered=True, reference=True, statistics=frozenset({"kl_ref_policy"}))

    targets = reference_sums

    def loss(self, batch: Batch, policy: Outputs, targets: Targets) -> Loss:
        """Shapes: `policy.logps` and the statistic are [B, 2, T]; the total is [B]."""
        reward = self.beta * log_ratios(policy, targets)  # [B, 2]
        kl = self.beta * _sequential_kl(policy)
        logit = reward[:, 0] - reward[:, 1] - self.alpha * (kl[:, 1] - kl[:, 0].detach())
        return Loss(-logsigmoid(logit), pair_metrics(reward))


def _sequential_kl(policy: Outputs) -> Tensor:
    """K, [B, 2]."""
    return policy.statistics["kl_ref_policy"].masked_fill(~policy.mask, 0).sum(-1)
