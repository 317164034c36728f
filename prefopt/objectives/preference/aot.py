"""Alignment via Optimal Transport."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from prefopt.objectives.maths import pair_metrics
from prefopt.objectives.parts import desirability, log_ratios, reference_sums
from prefopt.support.domains import Positive
from prefopt.types import Batch, Loss, Needs, Outputs, Targets


@dataclass(frozen=True)
class AOT:
    """Alignment via Optimal Transport, paired: the policy's margins should dominate the reference's, quantile by quantile.

    L = −1/B Σ_s log σ(β(m_(s) − n_(s))),  m = log π(y_w|x) − log π(y_l|x),  n = the like of π_ref

    m_(s) and n_(s) are the s-th smallest of the logical batch; log-probs are summed over tokens, [B, 2]. The term of place s
    belongs to the prompt whose margin stands there. First-order stochastic dominance is that every quantile is larger.

    On the pocket world (experiments/objectives) its gain is not sure in every seed: β = 0.01 hardly holds it near the reference.

    Source: Melnyk et al., arXiv 2406.05882v1 (paired AOT), with the logistic loss, as TRL has it; β = 0.01 is this project's choice
    (TRL's is its common 0.1). Sorted over the logical batch, whatever the micro-batch or the number of processes; TRL 1.16 sorts
    what a process forwards at once. Its label smoothing is left out.

    Attributes:
        beta: β.
    """

    beta: Positive = 0.01
    needs = Needs(completions=2, ordered=True, reference=True, whole_batch=True)
    targets = reference_sums

    def loss(self, batch: Batch, policy: Outputs, targets: Targets) -> Loss:
        """Shapes: `policy.logps` is [B, 2, T]; the total is [B]."""
        logps, reference = policy.sum(), targets.rows["reference"]
        margin, order = (logps[:, 0] - logps[:, 1]).sort()
        places = -logsigmoid(self.beta * (margin - (reference[:, 0] - reference[:, 1]).sort().values))
        total = torch.zeros_like(places).index_add(0, order, places)
        return Loss(total, pair_metrics(self.beta * (logps - reference)))


@dataclass(frozen=True)
class AOTUnpaired:
    """Alignment via Optimal Transport, unpaired: the good completions' log-ratios should dominate the bad ones' as a set.

    L = −1/n Σ_s log σ(β(Δ^D_(s) − Δ^U_(s))),  Δ = log π(y|x) − log π_ref(y|x)

    Δ^D_(s) is the s-th smallest log-ratio of the n desirable completions of the logical batch (of several of a prompt, those
    above their mean score; of one, those with a score above 0), Δ^U_(s) that of the undesirable ones. Where their numbers differ,
    it is the quantile (s − ½)/n of the undesirable ones, linearly interpolated. Log-probs are summed over tokens, [B, K]. The term
    of place s belongs to the prompt of its desirable completion; a batch without one of the two kinds has loss 0.

    On the pocket world (experiments/objectives) its gain is not sure in every seed: β = 0.01 hardly holds it near the reference.

    Source: Melnyk et al., arXiv 2406.05882v1 (unpaired AOT), with the logistic loss; β as in `AOT`. TRL takes the two sides of
    pairs, sorted in each micro-batch. Unequal numbers are our extension.

    Attributes:
        beta: β.
    """

    beta: Positive = 0.01
    needs = Needs(completions=None, scores=True, reference=True, whole_batch=True, signs=True)
    targets = reference_sums

    def loss(self, batch: Batch, policy: Outputs, targets: Targets) -> Loss:
        """Shapes: `policy.logps` is [B, K, T]; the total is [B]."""
        delta, label = log_ratios(policy, targets), desirability(batch)
        good, order = delta[label > 0].sort()
        bad = delta[label < 0].sort().values
        total = 0 * delta.sum(-1)
        if len(good) and len(bad):
            places = -logsigmoid(self.beta * (good - _at_the_places_of(len(good), bad))) * len(batch) / len(good)
            total = total.index_add(0, (label > 0).nonzero()[:, 0][order], places)
        reward = self.beta * delta.detach()
        metrics = {
            "rewards/desirable": torch.where(label > 0, reward, torch.nan).nanmean(-1),
            "rewards/undesirable": torch.where(label < 0, reward, torch.nan).nanmean(-1),
        }
        return Loss(total, metrics)


def _at_the_places_of(count: int, ascending: Tensor) -> Tensor:
    """[count] quantiles (s − ½)/count of a sorted sample, linearly interpolated; the sample itself if it is of that size."""
    if count == len(ascending):
        return ascending
    places = (torch.arange(count, device=ascending.device, dtype=torch.float64) + 0.5) * len(ascending) / count - 0.5
    places = places.clamp(0, len(ascending) - 1)
    low = places.floor().long()
    share = (places - low).to(ascending)
    return ascending[low] * (1 - share) + ascending[(low + 1).clamp(max=len(ascending) - 1)] * share
