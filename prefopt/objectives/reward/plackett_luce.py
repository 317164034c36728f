"""The Plackett–Luce reward model."""

from dataclasses import dataclass

from prefopt.objectives.maths import list_metrics, plackett_luce
from prefopt.objectives.parts import nothing, off_centre
from prefopt.support.domains import NonNegative
from prefopt.types import Batch, Loss, Needs, Outputs, Targets


@dataclass(frozen=True)
class PlackettLuceReward:
    """Plackett–Luce maximum likelihood of a whole ranking.

    L = −Σ_k [r_k − log Σ_{j≥k} exp r_j] + c (2/K Σ_k r_k)²

    r are a scorer's rewards, [B, K], of completions in order, best first; absent ones are left out, and K counts the others.
    Rankings fix a reward only up to a constant for each prompt; c > 0 picks the centred one. With two completions this is
    `BradleyTerry`; `PlackettLuceDPO` is the same likelihood under implicit rewards.

    Source: Plackett, "The Analysis of Permutations", Applied Statistics 24 (1975); as a reward model, Zhu et al., "Principled
    Reinforcement Learning with Human Feedback from Pairwise or K-wise Comparisons", arXiv 2301.11270. Centring is that of
    `BradleyTerry`, written for K completions; off by default.

    Attributes:
        centering: c.
    """

    centering: NonNegative = 0.0
    needs = Needs(completions=None, ordered=True, rewards=True)
    targets = nothing

    def loss(self, batch: Batch, policy: Outputs, targets: Targets) -> Loss:
        """Shapes: `policy.rewards` is [B, K]; the total is [B]."""
        assert policy.rewards is not None
        total = self.centering * off_centre(policy.rewards, batch.present) - plackett_luce(
            policy.rewards, batch.present
        )
        return Loss(total, list_metrics(policy.rewards, batch))
