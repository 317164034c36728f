"""What the methods share that compare a prompt's completions with each other, and go through a batch several times."""

from typing import Any

import torch
from torch import Tensor

from prefopt.objectives.online.advantage import (
    Credit,
    advantage_metrics,
    centred,
    credited,
    episodes,
    group_std,
    over_tokens,
    standardised,
    total_scores,
)
from prefopt.objectives.online.surrogate import ratio_rows
from prefopt.types import Batch, Outputs, Targets


def standardised_targets(objective: Any, batch: Batch, old: Outputs | None, reference: Outputs | None) -> Targets:
    """A `targets` method: A = (score − mean) / (std + e) of the group, and old log-probs, [B, K, T] each."""
    return group_targets(
        objective, batch, old, reference, standardised(total_scores(batch), batch.present, objective.e)
    )


def credited_targets(objective: Any, batch: Batch, old: Outputs | None, reference: Outputs | None) -> Targets:
    """A `targets` method: as `standardised_targets`, with what the objective's `credit` credits a token with for the score."""
    scores = total_scores(batch)
    advantages = standardised(scores, batch.present, objective.e)
    unit = group_std(scores, batch.present) + objective.e
    return group_targets(objective, batch, old, reference, advantages, _earned_before(batch, objective.credit, unit))


def centred_targets(objective: Any, batch: Batch, old: Outputs | None, reference: Outputs | None) -> Targets:
    """A `targets` method: A = credit − mean score of the group, and old log-probs, [B, K, T] each."""
    advantages = centred(total_scores(batch), batch.present)
    before = _earned_before(batch, objective.credit, torch.ones_like(advantages[:, :1]))
    return group_targets(objective, batch, old, reference, advantages, before)


def _earned_before(batch: Batch, credit: Credit, unit: Tensor) -> Tensor | None:
    """[B, K, T] what a completion has earned before each token, in this unit [B, 1]; None where a token is credited with it.

    A group whose completions earn the same has nothing to learn from, whenever they earn it.
    """
    if credit == "outcome":
        return None
    scores, nothing = total_scores(batch), torch.zeros(batch.mask.shape, device=batch.mask.device)
    before = over_tokens(scores, batch.mask) - credited(batch, nothing, credit)
    varied = group_std(scores, batch.present) > 0
    return torch.where(varied[..., None], before / torch.where(varied, unit, 1)[..., None], 0)


def group_targets(
    objective: Any,
    batch: Batch,
    old: Outputs | None,
    reference: Outputs | None,
    advantages: Tensor,
    before: Tensor | None = None,
) -> Targets:
    """Advantages, old log-probs, and what the objective's KL and its sampler weights read, [B, K, T] each.

    Args:
        objective: with `tis` and `kl`.
        batch: scored.
        old: the policy's outputs before the update.
        reference: the reference's, where there is a KL.
        advantages: [B, K], of completions.
        before: [B, K, T], what a token's completion had earned before it and the token is not credited with.
    """
    assert old is not None
    of_tokens = over_tokens(advantages, batch.mask)
    rows = {"advantages": of_tokens if before is None else of_tokens - before}
    rows |= ratio_rows(batch, old, objective.tis) | objective.kl.rows(reference)
    metrics = advantage_metrics(advantages, batch.present) | episodes(batch.mask) | objective.kl.metrics(old, reference)
    return Targets(rows, metrics)
