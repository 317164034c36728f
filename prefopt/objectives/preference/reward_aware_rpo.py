"""Reward-aware Preference Optimization."""

from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

from torch import Tensor
from torch.nn.functional import logsigmoid

from prefopt.objectives.maths import pair_metrics
from prefopt.objectives.parts import log_ratios, reference_sums
from prefopt.support.domains import Positive
from prefopt.types import Batch, Loss, Needs, Outputs, Targets

Distance = Literal["sq", "bwd", "fwd"]


@dataclass(frozen=True)
class RewardAwareRPO:
    """Reward-aware Preference Optimization: the implicit reward's margin is brought to the margin of given rewards.

    L = D(a, b),  a = β(Δ_w − Δ_l),  b = η(r_w − r_l),  Δ = log π(y|x) − log π_ref(y|x)

    "sq": (a − b)² · "bwd": KL(Bern σ(b) ‖ Bern σ(a)) · "fwd": KL(Bern σ(a) ‖ Bern σ(b))

    Log-probs are summed over the tokens of a completion, [B, 2], chosen first; r is `batch.scores`, [B, 2]. Every distance is 0 at
    a = b: beyond it, a pair told apart too well is pulled together. "bwd" is DPO on the soft label σ(b) less that label's entropy,
    "fwd" is EXO with logit(1 − ε) = b, and "sq" with β = 1 and b = 1/(2τ) is IPO. Scores without a scale, such as the ±½ of bare
    preferences, make every pair ask for the same margin.

    Source: Sun et al., arXiv 2502.00203; "bwd" is the form used for Nemotron-4 340B (arXiv 2406.11704). As in NeMo-Aligner's
    `rpo_bwd_kl`, "backward" puts the *target* first; its β = 0.2 and η = 1 (`ref_policy_kl_penalty`, `gt_reward_scale`) are the
    defaults. Its form for several completions, a KL of softmaxes, is not here. One of several methods called RPO: see `RPO` for
    the others.

    Attributes:
        beta: β, the scale of the implicit reward.
        eta: η, the scale of the given rewards.
        distance: D, one of "sq", "bwd", "fwd".
    """

    beta: Positive = 0.2
    eta: Positive = 1.0
    distance: Distance = "bwd"
    needs = Needs(completions=2, ordered=True, scores=True, reference=True)
    contract_exceptions: ClassVar = {
        "prefers chosen": "the margin that it asks for is finite; beyond it, it pulls back"
    }

    targets = reference_sums

    def __post_init__(self) -> None:
        if self.distance not in get_args(Distance):
            raise ValueError(f"distance must be one of {', '.join(get_args(Distance))}, got {self.distance!r}")

    def loss(self, batch: Batch, policy: Outputs, targets: Targets) -> Loss:
        """Shapes: `policy.logps` is [B, 2, T], `batch.scores` [B, 2]; the total is [B]."""
        assert batch.scores is not None
        reward = self.beta * log_ratios(policy, targets)  # [B, 2]
        implicit = reward[:, 0] - reward[:, 1]
        given = self.eta * (batch.scores[:, 0] - batch.scores[:, 1]).to(reward.dtype)
        if self.distance == "sq":
            total = (implicit - given) ** 2
        else:
            total = _bernoulli_kl(*((given, implicit) if self.distance == "bwd" else (implicit, given)))
        return Loss(total, pair_metrics(reward))


def _bernoulli_kl(first: Tensor, second: Tensor) -> Tensor:
    """KL(Bern σ(first) ‖ Bern σ(second)), of logits."""

    def side(one: Tensor, other: Tensor) -> Tensor:
        return one.sigmoid() * (logsigmoid(one) - logsigmoid(other))

    return side(first, second) + side(-first, -second)
