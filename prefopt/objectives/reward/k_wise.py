"""The reward model of InstructGPT, from rankings."""

from dataclasses import dataclass

from torch.nn.functional import logsigmoid

from prefopt.objectives.maths import better, list_metrics
from prefopt.objectives.parts import nothing, off_centre
from prefopt.support.domains import NonNegative
from prefopt.types import Batch, Loss, Needs, Outputs, Targets


@dataclass(frozen=True)
class KWise:
    """Bradley–Terry on all pairs of a list at once: the mean over its pairs.

    L = −1/P Σ_{s_i > s_j} log σ(r_i − r_j) + c (2/K Σ_k r_k)²

    r are a scorer's rewards, [B, K], and s the scores that rank them; P is the number of pairs, K(K − 1)/2 without
    ties. Completions of equal score make no pair, absent ones none; a list without any pair has likelihood 1. Rankings fix a
    reward only up to a constant for each prompt; c > 0 picks the centred one. With two completions this is `BradleyTerry`.

    Source: Ouyang et al., arXiv 2203.02155v1, eq. 1: all comparisons of a prompt are one element of a batch, so that each
    completion is scored once and no prompt weighs more for being ranked longer. Centring is that of `BradleyTerry`, written for
    K completions so that it sees the constant and nothing else; off by default.

    Attributes:
        centering: c.
    """

    centering: NonNegative = 0.0
    needs = Needs(completions=None, scores=True, rewards=True)
    targets = nothing

    def loss(self, batch: Batch, policy: Outputs, targets: Targets) -> Loss:
        """Shapes: `policy.rewards` is [B, K]; the total is [B]."""
        assert policy.rewards is not None
        rewards, pairs = policy.rewards, better(batch)  # [B, better, worse]
        likelihood = logsigmoid(rewards[:, :, None] - rewards[:, None, :]).masked_fill(~pairs, 0).sum((1, 2))
        total = -likelihood / pairs.sum((1, 2)).clamp(min=1) + self.centering * off_centre(rewards, batch.present)
        return Loss(total, list_metrics(rewards, batch))
