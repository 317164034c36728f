"""A reward model of ratings."""

from dataclasses import dataclass
from typing import ClassVar

from prefopt.objectives.maths import list_metrics
from prefopt.objectives.parts import nothing
from prefopt.types import Batch, Loss, Needs, Outputs, Targets


@dataclass(frozen=True)
class RatingRegression:
    """Least squares on ratings: the reward is the rating itself.

    L = 1/K Σ_k (r_k − s_k)²

    r are a scorer's rewards and s the scores, [B, K]; K is the number of completions that are present. The scores are taken as they
    are: ratings far from 0 or with a wide spread are better scaled in the data.

    Source: the textbook's; as a reward model of human ratings, Wang et al., "HelpSteer2", arXiv 2406.08673.
    """

    needs = Needs(completions=None, scores=True, rewards=True)
    contract_exceptions: ClassVar = {
        "prefers chosen": "a reward above the rating is as wrong as one below it",
    }
    targets = nothing

    def loss(self, batch: Batch, policy: Outputs, targets: Targets) -> Loss:
        """Shapes: `policy.rewards` is [B, K]; the total is [B]."""
        assert policy.rewards is not None and batch.scores is not None
        present = batch.present
        error = (policy.rewards - batch.scores.to(policy.rewards)).masked_fill(~present, 0)
        total = error.square().sum(-1) / present.sum(-1).clamp(min=1)
        return Loss(total, list_metrics(policy.rewards, batch))
