"""Self-Play Preference Optimization."""

from dataclasses import dataclass

import torch

from prefopt.objectives.parts import log_ratios, reference_sums
from prefopt.objectives.preference.softdpo import metrics_by_preference
from prefopt.support.domains import Positive
from prefopt.types import Batch, Loss, Needs, Outputs, Targets


@dataclass(frozen=True)
class SPPO:
    """Self-Play Preference Optimization: regresses each log-ratio to how far the completion's win rate is from a half.

    L = ½[(Δ_0 − η(P_0 − ½))² + (Δ_1 − η(P_1 − ½))²],  Δ = log π(y|x) − log π_ref(y|x)

    Log-probs are summed over the tokens of a completion, [B, 2]; the pair has no order. P_0 = P(y_0 beats y_1) is
    `batch.preference[:, 0, 1]` and P_1 is `preference[:, 1, 0]`. In the paper P is the win rate against the policy, estimated from
    several samples; of a pair this is the other one. The reference is the policy of the last iteration. With certain labels the
    targets are ±η/2, ±500 at the default, and L is half of TRL's `sppo_hard` at β = 1/η: TRL leaves out the mean over the two.
    The metrics are of the reward Δ/η, as in `SoftDPO` for ties.

    Source: Wu et al., arXiv 2405.00675v4, eq. 4.7 and algorithm 1; η = 1000, that is β = 1/η = 0.001, is theirs.

    Attributes:
        eta: η > 0, the learning rate of the multiplicative weights.
    """

    eta: Positive = 1000.0
    needs = Needs(completions=2, preference=True, reference=True)

    targets = reference_sums

    def __post_init__(self) -> None:
        if self.eta <= 0:
            raise ValueError(f"eta must be above 0, got {self.eta}")

    def loss(self, batch: Batch, policy: Outputs, targets: Targets) -> Loss:
        """Shapes: `policy.logps` is [B, 2, T], `batch.preference` [B, 2, 2]; the total is [B]."""
        assert batch.preference is not None
        wins = torch.stack([batch.preference[:, 0, 1], batch.preference[:, 1, 0]], 1)  # [B, 2]
        delta = log_ratios(policy, targets)  # [B, 2]
        total = (delta - self.eta * (wins - 0.5)).square().mean(-1)  # eq. 4.7
        return Loss(total, metrics_by_preference(delta / self.eta, wins[:, 0]))
