"""Checks of what a loss may not depend on: padding, absent completions, the order of prompts, how the batch was cut."""

import dataclasses
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from prefopt.objectives.contract.case import Case, same
from prefopt.objectives.contract.finding import Finding, difference
from prefopt.types import Batch, Outputs


def padding(case: Case) -> Iterator[Finding]:
    """More padding must not change the loss."""
    extra = 3

    def wider(value: Tensor) -> Tensor:
        return torch.nn.functional.pad(value, (0, extra))

    def batch(b: Batch) -> Batch:
        wide = b.padded(extra)
        return dataclasses.replace(wide, completion_ids=wide.completion_ids.masked_fill(~wide.mask, 7))

    def outputs(o: Outputs) -> Outputs:
        of_tokens = {name: wider(value) for name, value in o.fields().items() if value.ndim == 3}
        return dataclasses.replace(o.with_fields(of_tokens), mask=wider(o.mask))

    wide, own = case.transformed(batch, outputs), case.targets()
    targets = wide.targets()
    if case.draws():  # other draws for another shape: the same ones, where they are draws for tokens
        shape = case.batch.mask.shape
        targets = dataclasses.replace(own, rows={n: wider(v) if v.shape == shape else v for n, v in own.rows.items()})
    expected, got = case.loss(own).total, wide.loss(targets).total
    if not same(expected, got):
        yield (
            "the same total with three more padding tokens",
            difference(expected, got),
            "padding counted: use batch.mask, Outputs.sum() and mean()",
        )


def absent(case: Case) -> Iterator[Finding]:
    """What an absent completion has is never to be read."""
    missing = ~case.batch.present
    if not missing.any():
        return
    rows = {name: value.clone() for name, value in case.batch.columns.items()}
    for name, value in rows.items():
        if case.batch.axis(name) != "prompt" and value.is_floating_point():
            value[missing] = 0.75
    changes: dict[str, Any] = {"columns": rows}
    if case.batch.scores is not None:
        changes["scores"] = case.batch.scores.masked_fill(missing, 0.75)
    if case.batch.rewards is not None:
        changes["rewards"] = case.batch.rewards.masked_fill(missing[..., None], 0.75)
    changes["named_scores"] = {name: s.masked_fill(missing, 0.75) for name, s in case.batch.named_scores.items()}
    if case.batch.preference is not None:
        either = missing[:, :, None] | missing[:, None, :]
        changes["preference"] = case.batch.preference.masked_fill(either, 0.75)

    def outputs(o: Outputs) -> Outputs:
        return o if o.rewards is None else dataclasses.replace(o, rewards=o.rewards.masked_fill(missing, 0.75))

    expected, other = case.loss().total, case.transformed(lambda b: dataclasses.replace(b, **changes), outputs)
    got = other.loss().total
    if not same(expected, got):
        yield (
            "the same total whatever an absent completion's score, reward or columns",
            difference(expected, got),
            "a sum or mean over K without batch.present",
        )


def reordering(case: Case) -> Iterator[Finding]:
    """Totals must move with their prompts."""
    order = torch.arange(len(case.batch)).roll(1)
    own, moved = case.targets(), case.transformed(lambda b: b.rows(order), lambda o: o.rows(order))
    expected = case.loss(own).total[order]
    got = moved.loss(own.select(order) if case.draws() else None).total
    if not same(expected, got):
        yield (
            "totals that move with their prompts",
            difference(expected, got),
            "a place in the batch is used as if it meant something",
        )


def row_slices(case: Case) -> Iterator[Finding]:
    """Rows apart must have the totals that they have together, unless the objective couples them."""
    if case.objective.needs.whole_batch:
        return
    expected, targets = case.loss().total, case.targets()
    for rows in (torch.tensor([0]), torch.tensor([2, 1, 3])):
        got = case.objective.loss(case.batch.rows(rows), case.policy.rows(rows), targets.select(rows)).total
        if not same(expected[rows], got):
            yield (
                "the same totals when rows are taken apart",
                difference(expected[rows], got),
                "a statistic over the batch in `loss`: compute it in `targets`, or declare whole_batch=True",
            )
