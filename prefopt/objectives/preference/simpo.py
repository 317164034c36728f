"""Simple Preference Optimization."""

from dataclasses import dataclass

from torch.nn.functional import logsigmoid

from prefopt.objectives.maths import pair_metrics
from prefopt.objectives.parts import nothing
from prefopt.support.domains import NonNegative, Positive
from prefopt.types import Batch, Loss, Needs, Outputs, Targets


@dataclass(frozen=True)
class SimPO:
    """Simple Preference Optimization: a margin of mean log-probs, without a reference.

    L = −log σ(β(l̄_w − l̄_l) − γ),  l̄ = mean over tokens of log π(y_t|x, y_<t)

    l̄ is [B, 2], chosen first; the reward in the metrics is β l̄.

    Source: Meng et al., arXiv 2405.14734v3, eq. 6. β = 2 and γ/β = 0.25, which is γ = 0.5, are the defaults of the authors' code
    (princeton-nlp/SimPO, scripts/simpo_config.py); its README starts from γ/β = 0.5, searches it from 0 to 1, and finds β as
    large as 10 better in many cases. `gamma` is γ itself, as the paper's formula and TRL's `simpo_gamma` have it; the authors'
    code takes γ/β.

    Attributes:
        beta: β.
        gamma: γ, the margin that is asked for, in units of the reward.
    """

    beta: Positive = 2.0
    gamma: NonNegative = 0.5
    needs = Needs(completions=2, ordered=True)
    targets = nothing

    def loss(self, batch: Batch, policy: Outputs, targets: Targets) -> Loss:
        """Shapes: `policy.logps` is [B, 2, T]; the total is [B]."""
        reward = self.beta * policy.mean()  # [B, 2]
        return Loss(-logsigmoid(reward[:, 0] - reward[:, 1] - self.gamma), pair_metrics(reward))  # eq. 6
