"""Preference Ranking Optimization."""

from dataclasses import dataclass

import torch

from prefopt.functional import list_metrics, masked_log_softmax
from prefopt.objectives.parts import nothing
from prefopt.types import Batch, Loss, Needs, Outputs, Targets


@dataclass(frozen=True)
class PRO:
    """Preference Ranking Optimization: each completion against all that are worse, the more so the worse they are.

    L = −Σ_{k<K} log softmax_{i≥k}(l̄_i g_ki)_k − λ (K − 1)² l̄_1,
    g_ki = r_k − r_i for i > k,  g_kk = max_{i>k} g_ki,  l̄ = mean over tokens of log π(y_t|x, y_<t)

    Completions are ordered by their scores r, best first, and l̄ is [B, K]; absent ones are left out and K is the number of
    the others. 1/g is the paper's temperature T. Between equal scores g = 0: each is a constant in the other's softmax.

    Source: Song et al., arXiv 2306.17492v2 (L_PRO with the temperatures T of its §3, and L_SFT); λ = 0.05 by its §4.3, where the
    weight of SFT is 0.05 (l − 1)².

    Attributes:
        lam: λ, the weight of imitation of the best.
    """

    lam: float = 0.05
    needs = Needs(completions=None, ordered=True, scores=True)
    targets = nothing

    def loss(self, batch: Batch, policy: Outputs, targets: Targets) -> Loss:
        """Shapes: `policy.logps` is [B, K, T]; the total is [B]."""
        assert batch.scores is not None
        mean, present = policy.mean(), batch.present  # [B, K]
        completions = mean.shape[1]
        later = torch.ones(completions, completions, dtype=torch.bool, device=mean.device).triu(1)
        worse = later & present[:, :, None] & present[:, None, :]  # [B, k, i]
        gap = (batch.scores[:, :, None] - batch.scores[:, None, :]).masked_fill(~worse, 0)
        gap = gap + torch.diag_embed(gap.amax(-1))  # g_kk
        takes_part = worse | torch.eye(completions, dtype=torch.bool, device=mean.device)
        chosen = masked_log_softmax(mean[:, None, :] * gap, takes_part).diagonal(dim1=1, dim2=2)  # [B, k]
        count = present.sum(-1).to(mean)  # not an integer, which times λ would be float32
        total = -(chosen * worse.any(-1)).sum(-1) - self.lam * (count - 1) ** 2 * mean[:, 0]
        return Loss(total, list_metrics(mean, batch))
