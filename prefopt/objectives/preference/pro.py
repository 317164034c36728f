"""Preference Ranking Optimization."""

from dataclasses import dataclass

import torch

from prefopt.objectives.maths import list_metrics, masked_log_softmax
from prefopt.objectives.parts import nothing
from prefopt.support.domains import NonNegative
from prefopt.types import Batch, Loss, Needs, Outputs, Targets


@dataclass(frozen=True)
class PRO:
    """Preference Ranking Optimization: each completion against all that are worse, the more so the worse they are.

    L = −Σ_{k<K} log softmax_{i≥k}(l̄_i g_ki)_k − λ (K − 1)² log π(y_1|x),
    g_ki = r_k − r_i for i > k,  g_kk = max_{i>k} g_ki,  l̄ = mean over tokens of log π(y_t|x, y_<t)

    Completions are ordered by their scores r, best first, and l̄ is [B, K]; absent ones are left out and K is the number of
    the others. The ranking compares means, but the imitated log-prob is the sum over the first completion's tokens. 1/g is the
    paper's temperature T. Between equal scores g = 0: each is a constant in the other's softmax.

    Source: Song et al., arXiv 2306.17492 (L_PRO with temperatures, and L_SFT), as the official code has it
    (AlibabaResearch/DAMO-ConvAI, PRO/train/utils/process_manager.py), with its factor (K − 1)², its sum, and the λ = 0.05 of its
    scripts (train_hh.sh; the parser's own default is 2). It imitates the completion that a row of data names as `sft_index`, here
    the best.

    Attributes:
        lam: λ, the weight of imitation of the best.
    """

    lam: NonNegative = 0.05
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
        total = -(chosen * worse.any(-1)).sum(-1) - self.lam * (count - 1) ** 2 * policy.sum()[:, 0]
        return Loss(total, list_metrics(mean, batch))
