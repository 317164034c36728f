"""Weighted Preference Optimization."""

from dataclasses import dataclass
from typing import ClassVar

from torch.nn.functional import logsigmoid

from prefopt.objectives.maths import pair_metrics
from prefopt.objectives.parts import log_ratios, reference_sums
from prefopt.support.domains import Positive
from prefopt.types import Batch, Loss, Needs, Outputs, Targets


@dataclass(frozen=True)
class WPO:
    """Weighted Preference Optimization: DPO in which pairs count as much as the current policy would write them.

    L = −w log σ(βh),  h = Δ_w − Δ_l,  Δ = log π(y|x) − log π_ref(y|x),  w = sg min(1, e^(ã_w + ã_l)),
    ã = mean_t [log π(y_t|·) − log Σ_v π(v|·)²]

    Δ sums over the tokens of a completion, [B, 2], chosen first; ã is a mean over them. Σ_v π(v)² is the expected probability of
    a token that the policy draws itself, so that such tokens have ã near 0 however sure or unsure the policy is: “sampled
    alignment”. sg stops the gradient: w is of the current policy, but a constant.

    On the pocket world (experiments/objectives) it gains nothing: β = 0.01 hardly holds it, and it goes past where
    the gold reward is highest.

    Source: Zhou et al., arXiv 2406.11827v2, eq. 2, with the sampled alignment of its weights. The clamp at 1 is that of the
    official code (wzhouad/WPO, scripts/run_wpo.py); TRL 1.16 leaves it out. β = 0.01 is that of its training_configs.

    Attributes:
        beta: β, the strength of the implied KL constraint.
        aligned: False leaves log Σ_v π(v)² out of ã, which is then the mean log-prob of a token; the clamp is then idle.
    """

    beta: Positive = 0.01
    aligned: bool = True
    needs = Needs(completions=2, ordered=True, reference=True, statistics=frozenset({"log_sum_squares"}))
    contract_exceptions: ClassVar = {
        "starts at the reference": "its weights are probabilities under the policy",
    }

    targets = reference_sums

    def loss(self, batch: Batch, policy: Outputs, targets: Targets) -> Loss:
        """Shapes: `policy.logps` and the statistic are [B, 2, T]; the total is [B]."""
        reward = self.beta * log_ratios(policy, targets)  # [B, 2]
        likelihood = policy.mean()
        if self.aligned:
            expected = policy.statistics["log_sum_squares"].masked_fill(~policy.mask, 0).sum(-1)
            likelihood = likelihood - expected / policy.mask.sum(-1).clamp(min=1)
        weight = likelihood.sum(-1).clamp(max=0).exp().detach()  # eq. 2
        return Loss(-weight * logsigmoid(reward[:, 0] - reward[:, 1]), pair_metrics(reward))
