"""Process reward models: a label for each step of a completion."""

from dataclasses import dataclass

import torch
from torch.nn.functional import binary_cross_entropy_with_logits

from prefopt.objectives.parts import nothing
from prefopt.types import Batch, Loss, Needs, Outputs, Targets


@dataclass(frozen=True)
class StepReward:
    """A process reward model: cross-entropy on the label of each step, at the step's last token.

    L = −Σ_i [y_i log σ(z_i) + (1 − y_i) log σ(−z_i)],  i over the steps of a completion

    z_i is what the scorer gives the last token of step i, having read the prompt and all up to it, and y_i the probability that the
    step is right: a label, 1 or 0, or a share of continuations that end well. The loss is divided by the number of steps of the
    batch, so every step weighs alike. A new head, whose z is near 0, begins at about ln 2. Shapes: z and y are [B, K, T], read at
    `batch.step_ends`.

    The metrics are accuracies of σ(z) > ½ for y > ½, over the steps of a prompt: of all, of right and of wrong ones; and of the
    completion as a whole, which is right where all of its steps are.

    Source: Lightman et al., arXiv 2305.20050, who score a completion with Π_i σ(z_i), as the trained model does; labels of steps go
    back to Uesato et al., arXiv 2211.14275, and by continuations to Wang et al. (Math-Shepherd), arXiv 2312.08935. TRL's former
    PRMTrainer has this loss with two logits for each token, whose difference is z, and the same mean over the steps of a batch.
    """

    needs = Needs(columns=("step_labels",), rewards=True, step_rewards="logit", per="step")
    targets = nothing

    def loss(self, batch: Batch, policy: Outputs, targets: Targets) -> Loss:
        """Shapes: `policy.step_rewards` is [B, K, T]; the total is [B]."""
        assert policy.step_rewards is not None
        ends, logits = batch.step_ends, policy.step_rewards
        labels = batch.columns["step_labels"].to(logits)
        losses = binary_cross_entropy_with_logits(logits, labels, reduction="none")
        total = losses.masked_fill(~ends, 0).sum((1, 2))
        return Loss(total, _accuracies(logits.detach() > 0, labels > 0.5, ends))


def _accuracies(said: torch.Tensor, label: torch.Tensor, ends: torch.Tensor) -> dict[str, torch.Tensor]:
    """[B] each, from [B, K, T]; NaN where a prompt has no step, or no completion with one, of the kind."""

    def share(right: torch.Tensor, of: torch.Tensor) -> torch.Tensor:
        counted = of.flatten(1).sum(-1)
        return torch.where(counted > 0, (right & of).flatten(1).sum(-1) / counted, torch.nan)

    whole = (said | ~ends).all(-1) == (label | ~ends).all(-1)
    return {
        "steps/accuracy": share(said == label, ends),
        "steps/accuracy_right": share(said, ends & label),
        "steps/accuracy_wrong": share(~said, ends & ~label),
        "steps/accuracy_whole": share(whole, ends.any(-1)),
    }
