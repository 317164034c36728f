"""Anchored Preference Optimization."""

from dataclasses import dataclass

from prefopt.objectives.maths import pair_metrics
from prefopt.objectives.parts import log_ratios, reference_sums
from prefopt.support.domains import Positive
from prefopt.types import Batch, Loss, Needs, Outputs, Targets


@dataclass(frozen=True)
class APOZero:
    """APO-zero: raises the chosen and lowers the rejected completion, for data that are better than the model.

    L = 1 − σ(βΔ_w) + σ(βΔ_l),  Δ = log π(y|x) − log π_ref(y|x)

    Log-probs are summed over the tokens of a completion, [B, 2], chosen first. The two sides are not coupled: each is anchored at
    the reference, where its pull is strongest. With π = π_ref the loss is 1; it lies between 0 and 2.

    Source: D'Oosterlinck et al., arXiv 2408.06266v5, eq. 7; β = 0.1 is theirs (§5.2).

    Attributes:
        beta: β, the scale of the implicit reward.
    """

    beta: Positive = 0.1
    needs = Needs(completions=2, ordered=True, reference=True)

    targets = reference_sums

    def loss(self, batch: Batch, policy: Outputs, targets: Targets) -> Loss:
        """Shapes: `policy.logps` is [B, 2, T]; the total is [B]."""
        reward = self.beta * log_ratios(policy, targets)  # [B, 2]
        total = (-reward[:, 0]).sigmoid() + reward[:, 1].sigmoid()  # eq. 7: 1 − σ(a) = σ(−a)
        return Loss(total, pair_metrics(reward))


@dataclass(frozen=True)
class APODown:
    """APO-down: lowers the chosen completion and the rejected one more, for data that are worse than the model.

    L = σ(βΔ_w) + 1 − σ(βh),  h = Δ_w − Δ_l,  Δ = log π(y|x) − log π_ref(y|x)

    Log-probs are summed over the tokens of a completion, [B, 2], chosen first. With π = π_ref the loss is 1 and its gradient on
    Δ_w is 0: there only the rejected completion moves.

    On the pocket world (experiments/objectives) it collapses to texts of one token: the pairs are the model's own samples, and
    not worse than it.

    Source: D'Oosterlinck et al., arXiv 2408.06266v5, eq. 8; β = 0.1 is theirs (§5.2).

    Attributes:
        beta: β, the scale of the implicit reward.
    """

    beta: Positive = 0.1
    needs = Needs(completions=2, ordered=True, reference=True)

    targets = reference_sums

    def loss(self, batch: Batch, policy: Outputs, targets: Targets) -> Loss:
        """Shapes: `policy.logps` is [B, 2, T]; the total is [B]."""
        reward = self.beta * log_ratios(policy, targets)  # [B, 2]
        total = reward[:, 0].sigmoid() + (reward[:, 1] - reward[:, 0]).sigmoid()  # eq. 8
        return Loss(total, pair_metrics(reward))
