"""The Bradley–Terry reward model."""

from dataclasses import dataclass

from torch.nn.functional import logsigmoid

from prefopt.functional import pair_metrics
from prefopt.objectives.parts import nothing
from prefopt.types import Batch, Loss, Needs, Outputs, Targets


@dataclass(frozen=True)
class BradleyTerry:
    """Bradley–Terry maximum likelihood: P(y_w beats y_l) = σ(r_w − r_l).

    L = −log σ(r_w − r_l) + c (r_w + r_l)²

    r are a scorer's rewards, [B, 2], chosen first. Preferences fix a reward only up to a constant for each prompt; c > 0
    picks the centred one.

    Source: Ouyang et al., arXiv 2203.02155v1, eq. 1 at K = 2; centring: Eisenstein et al., arXiv 2312.09244v3, who use
    c = 0.01. It is off by default, as in the former.

    Attributes:
        centering: c.
    """

    centering: float = 0.0
    needs = Needs(completions=2, ordered=True, rewards=True)

    targets = nothing

    def loss(self, batch: Batch, policy: Outputs, targets: Targets) -> Loss:
        """Shapes: `policy.rewards` is [B, 2]; the total is [B]."""
        assert policy.rewards is not None
        chosen, rejected = policy.rewards.unbind(-1)
        total = -logsigmoid(chosen - rejected) + self.centering * (chosen + rejected) ** 2
        return Loss(total, pair_metrics(policy.rewards))
