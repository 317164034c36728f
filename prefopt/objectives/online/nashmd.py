"""Nash-MD."""

from dataclasses import dataclass

import torch

from prefopt.objectives.online.advantage import came_from
from prefopt.objectives.parts import log_ratios, reference_sums
from prefopt.support.domains import NonNegative
from prefopt.types import Batch, Loss, Needs, Outputs, Targets


@dataclass(frozen=True)
class NashMD:
    """Nash-MD: REINFORCE on the probability of beating a mixture of the policy and its reference.

    L = mean over prompts of mean_y −[P(y ≻ y′) − ½ − τΔ(y)] log π(y|x),  Δ = log π(y|x) − log π_ref(y|x), without gradient,
    y′ ~ π^(1−m) π_ref^m, normalised token by token

    Log-probs are summed over tokens, [B, K]. The y are the completions of origin policy, the y′ those of origin mixture, which are
    not learnt from; P(y ≻ y′) is their mean where there are several. m belongs to the writer, not to the loss. Scores cannot
    say it: the feedback must compare. The value of the loss means nothing.

    Source: Munos et al., arXiv 2312.00886v4 (the policy gradient of Nash-MD, with baseline ½); in its theory m = ητ. TRL's former
    NashMDTrainer multiplies each token's log-ratio with that token's log-prob alone, which leaves out what a token does to the KL
    of those after it; here Δ is the completion's, as in the paper. τ = 0.1 and m = 0.5 are TRL's.

    Attributes:
        tau: τ ≥ 0, the weight of the KL to the reference.
    """

    tau: NonNegative = 0.1
    needs = Needs(preference=True, reference=True, rollouts=True, columns=("origin",), one_update=True)

    targets = reference_sums

    def loss(self, batch: Batch, policy: Outputs, targets: Targets) -> Loss:
        """Shapes: `policy.logps` is [B, K, T], `batch.preference` [B, K, K]; the total is [B]."""
        assert batch.preference is not None
        own, rivals = came_from(batch, "policy"), came_from(batch, "mixture")
        met = own[:, :, None] & rivals[:, None, :]
        wins = batch.preference.masked_fill(~met, 0).sum(-1) / met.sum(-1).clamp(min=1)  # P(y ≻ y′), [B, K]
        delta = log_ratios(policy, targets).detach()
        fought = met.any(-1)
        advantages = torch.where(fought, wins - 0.5 - self.tau * delta, 0)
        number = fought.sum(-1)
        total = -(advantages * policy.sum()).sum(-1) / number.clamp(min=1)
        none = number == 0
        metrics = {
            "preference/win": (wins * fought).sum(-1).div(number.clamp(min=1)).masked_fill(none, torch.nan),
            "kl/policy": (delta * fought).sum(-1).div(number.clamp(min=1)).masked_fill(none, torch.nan),
        }
        return Loss(total, metrics)
