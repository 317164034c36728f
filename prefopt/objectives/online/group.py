"""What the methods share that compare a prompt's completions with each other, and go through a batch several times."""

from typing import Any

from torch import Tensor

from prefopt.objectives.online.advantage import (
    advantage_metrics,
    centred,
    episodes,
    over_tokens,
    standardised,
    total_scores,
)
from prefopt.objectives.online.surrogate import ratio_rows
from prefopt.types import Batch, Outputs, Targets


def standardised_targets(objective: Any, batch: Batch, old: Outputs | None, reference: Outputs | None) -> Targets:
    """A `targets` method: A = (score − mean) / (std + e) of the group, and old log-probs, [B, K, T] each."""
    return _targets(objective, batch, old, reference, standardised(total_scores(batch), batch.present, objective.e))


def centred_targets(objective: Any, batch: Batch, old: Outputs | None, reference: Outputs | None) -> Targets:
    """A `targets` method: A = score − mean of the group, and old log-probs, [B, K, T] each."""
    return _targets(objective, batch, old, reference, centred(total_scores(batch), batch.present))


def _targets(
    objective: Any, batch: Batch, old: Outputs | None, reference: Outputs | None, advantages: Tensor
) -> Targets:
    assert old is not None
    rows = {"advantages": over_tokens(advantages, batch.mask)}
    rows |= ratio_rows(batch, old, objective.tis) | objective.kl.rows(reference)
    metrics = advantage_metrics(advantages, batch.present) | episodes(batch.mask) | objective.kl.metrics(old, reference)
    return Targets(rows, metrics)
