"""Learning from demonstrations."""

from dataclasses import dataclass

from prefopt.objectives.parts import nothing
from prefopt.types import Batch, Loss, Needs, Outputs, Targets


@dataclass(frozen=True)
class SFT:
    """Supervised fine-tuning: the negative log-likelihood of the best completion.

    L = −Σ_t log π(y_t | x, y_<t) / number of tokens

    y is the first of the ordered completions, [B, T] log-probs. The denominator is the number of completion tokens in the
    whole logical batch, so that every token weighs the same however the batch is split. (A mean per micro-batch, or per
    sequence, weighs the tokens of short sequences more.)

    Source: the usual maximum-likelihood objective, as the first stage of InstructGPT (arXiv 2203.02155v1, §3.5).
    """

    needs = Needs(completions=1, ordered=True, per="token")

    targets = nothing

    def loss(self, batch: Batch, policy: Outputs, targets: Targets) -> Loss:
        """Shapes: `policy.logps` is [B, 1, T]; the total is [B]."""
        return Loss(-policy.sum()[:, 0], {"nll": -policy.mean()[:, 0].detach()})
