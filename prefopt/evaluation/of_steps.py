"""What a scorer of steps says of held-out steps that have labels."""

from collections.abc import Sequence

from torch.nn.functional import binary_cross_entropy_with_logits

from prefopt.data import Tokenised
from prefopt.data.steps import LABELS
from prefopt.evaluation.breakdown import Measured
from prefopt.types import Batch, Outputs


def labelled(rows: Sequence[Tokenised]) -> list[Tokenised]:
    """Those whose steps have labels."""
    return [row for row in rows if LABELS in row.columns]


def of_steps(batch: Batch, outputs: Outputs, rows: Sequence[Tokenised]) -> dict[str, Measured]:
    """How often σ of the logit at a step's end is on the side of ½ where its label is, and how well it predicts the label.

    Every step weighs the same; a label of ½ is on neither side, and counts half.

    Args:
        batch: of these rows, with their labels.
        outputs: with `step_rewards` that are logits.
        rows: N of them.
    """
    assert outputs.step_rewards is not None
    ends = batch.step_ends
    logits, labels = outputs.step_rewards.double().cpu(), batch.columns[LABELS].double()
    right = ((logits.sign() * (labels - 0.5).sign()) + 1) / 2
    losses = binary_cross_entropy_with_logits(logits, labels, reduction="none")
    steps = ends.flatten(1).sum(-1)
    return {
        "step_accuracy": Measured(right.masked_fill(~ends, 0).sum((1, 2)), rows, steps),
        "step_nll": Measured(losses.masked_fill(~ends, 0).sum((1, 2)), rows, steps),
    }
