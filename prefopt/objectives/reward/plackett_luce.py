"""The Plackett–Luce reward model."""

from dataclasses import dataclass

from prefopt.functional import list_metrics, plackett_luce
from prefopt.objectives.parts import nothing
from prefopt.types import Batch, Loss, Needs, Outputs, Targets


@dataclass(frozen=True)
class PlackettLuceReward:
    """Plackett–Luce maximum likelihood of a whole ranking.

    L = −Σ_k [r_k − log Σ_{j≥k} exp r_j]

    r are a scorer's rewards, [B, K], of completions in order, best first; absent ones are left out. With two completions
    this is `BradleyTerry`; `PlackettLuceDPO` is the same likelihood under implicit rewards.

    Source: Plackett, "The Analysis of Permutations", Applied Statistics 24 (1975); as a reward model, Zhu et al., "Principled
    Reinforcement Learning with Human Feedback from Pairwise or K-wise Comparisons", arXiv 2301.11270.
    """

    needs = Needs(completions=None, ordered=True, rewards=True)
    targets = nothing

    def loss(self, batch: Batch, policy: Outputs, targets: Targets) -> Loss:
        """Shapes: `policy.rewards` is [B, K]; the total is [B]."""
        assert policy.rewards is not None
        return Loss(-plackett_luce(policy.rewards, batch.present), list_metrics(policy.rewards, batch))
