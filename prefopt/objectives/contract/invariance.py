"""Checks of what a loss may not depend on: padding, what an environment writes, absent completions, order, how it was cut."""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from prefopt.objectives.contract.case import Case, same
from prefopt.objectives.contract.finding import Finding, difference
from prefopt.objectives.contract.gradients import gradients_of, with_leaves
from prefopt.types import Batch, Outputs, Targets


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

    wide = case.transformed(batch, outputs)
    expected, got = case.loss().total, wide.loss(_targets(case, wide, wider)).total
    if not same(expected, got):
        yield (
            "the same total with three more padding tokens",
            difference(expected, got),
            "padding counted: use batch.mask, Outputs.sum() and mean()",
        )


def _targets(case: Case, other: Case, change: Callable[[Tensor], Tensor]) -> Targets:
    """Those of the other case; if they are draws, those of the case itself, for its shape is another: with its tokens moved."""
    own, shape = case.targets(), case.batch.mask.shape
    if not case.draws():
        return other.targets()
    return dataclasses.replace(own, rows={n: change(v) if v.shape == shape else v for n, v in own.rows.items()})


def environment_tokens(case: Case) -> Iterator[Finding]:
    """What an environment writes between the policy's tokens, and before them, must not change the loss."""
    other, spread = with_environment(case)
    expected, got = case.loss().total, other.loss(_targets(case, other, spread)).total
    cause = "tokens outside the mask counted: in a mean, a length, a place in T, the last token, or the next one"
    if not same(expected, got):
        yield (
            "the same total with an environment's tokens in between, where the mask is False",
            difference(expected, got),
            cause,
        )
        return
    traced, leaves = with_leaves(other)
    for name, gradient in gradients_of(traced.loss(_targets(case, other, spread)).total.sum(), leaves).items():
        if gradient.ndim == 3 and gradient[~other.batch.mask].abs().max() > 0:
            yield "no gradient at an environment's tokens", f"one on policy.{name}", cause


def with_environment(
    case: Case, extra: int = 4, noise: float = 0.0, seed: int = 3
) -> tuple[Case, Callable[[Tensor], Tensor]]:
    """The same case with tokens of an environment in between, whose ids are random, and how [B, K, T] was spread for it.

    Args:
        case: as it is without them.
        extra: how many in each completion; each completion has them at places of its own.
        noise: what models say there, which is 0 of `Policy` and nothing that may be read.
        seed: of places and ids.
    """
    draw = torch.Generator().manual_seed(seed)
    *lead, tokens = case.batch.mask.shape
    places = torch.rand(*lead, tokens + extra, generator=draw).argsort(-1)[..., :tokens].sort(-1).values

    def spread(value: Tensor) -> Tensor:
        return value.new_zeros(*lead, tokens + extra).scatter(-1, places, value)

    def outputs(o: Outputs) -> Outputs:
        mask = spread(o.mask)
        of_tokens = {
            name: spread(value) + noise * torch.randn(mask.shape, generator=draw, dtype=value.dtype) * ~mask
            for name, value in o.fields().items()
            if value.ndim == 3
        }
        return dataclasses.replace(o.with_fields(of_tokens), mask=mask)

    def batch(b: Batch) -> Batch:
        mask = spread(b.mask)
        ids = torch.randint(4, 100, mask.shape, generator=draw)
        return dataclasses.replace(
            b,
            completion_ids=torch.where(mask, spread(b.completion_ids), ids),
            mask=mask,
            rewards=None if b.rewards is None else spread(b.rewards),
            columns={name: spread(c) if b.axis(name) == "token" else c for name, c in b.columns.items()},
        )

    return case.transformed(batch, outputs), spread


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
