"""The checks of the contract, each a small one; a finding says what was expected, what came, and the likely cause."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor

from prefopt.objectives.contract.case import Case, same, sign_of
from prefopt.objectives.contract.directions import (
    gradient,
    padding_gradient,
    prefers_chosen,
    starts_at_the_reference,
    uses_reference,
)
from prefopt.objectives.contract.finding import Finding, shape_of
from prefopt.objectives.contract.gradients import gradients_of, with_leaves, with_outputs
from prefopt.objectives.contract.invariance import absent, environment_tokens, padding, reordering, row_slices
from prefopt.types import Adaptive, Loss, Targets


def _runs(case: Case) -> Iterator[Finding]:
    """On a copy, in float32; `_run` reports what it raises."""
    case.single().loss()
    yield from ()


def _shapes(case: Case) -> Iterator[Finding]:
    targets, rows = case.targets(), len(case.batch)
    if not isinstance(targets, Targets):
        yield "prefopt.Targets from `targets`", type(targets).__name__, "a bare dict, or no return"
        return
    for key, value in targets.rows.items():
        if not isinstance(value, Tensor) or value.shape[:1] != (rows,):
            yield (
                f"rows[{key!r}] with leading dimension {rows}",
                shape_of(value),
                "a number over the batch belongs in `metrics`, or expanded to [B]",
            )
    loss = with_leaves(case)[0].loss(targets)
    if not isinstance(loss, Loss):
        yield "prefopt.Loss from `loss`", type(loss).__name__, "return Loss(total, metrics)"
        return
    for what, value in {"total": loss.total, **loss.metrics}.items():
        if not isinstance(value, Tensor) or value.shape != (rows,):
            cause = "a mean or sum over the batch: leave that to the trainer"
            if isinstance(value, Tensor) and value.shape[:1] == (rows,):
                cause = "a number for each completion or token: reduce them to one for each prompt"
            yield f"{what} of shape [{rows}]", shape_of(value), cause
        elif what == "total" and not value.isfinite().all():
            yield "a finite total", str(value.tolist()), "log or division of something that can be 0"
        elif what == "total" and not value.requires_grad:
            yield "a total with a gradient", "none", "the policy's outputs are not used, or detached"
        elif what != "total" and value.requires_grad:
            yield f"{what} without gradient", "one with gradient", "metrics must be detached"


def _deterministic(case: Case) -> Iterator[Finding]:
    if not same(case.loss().total, case.loss().total):
        yield "the same total twice", "different ones", "randomness in `loss`; draws belong in `targets`"


def _pure(case: Case) -> Iterator[Finding]:
    fields, inputs = repr(case.objective), dict(_tensors(case))
    before = {name: value.clone() for name, value in inputs.items()}
    targets = case.targets()
    rows = targets.rows if isinstance(targets, Targets) else {}
    inputs |= {f"targets.{name}": value for name, value in rows.items() if isinstance(value, Tensor)}
    before |= {f"targets.{name}": value.clone() for name, value in rows.items() if isinstance(value, Tensor)}
    case.loss(targets)
    for name, value in inputs.items():
        if not same(before[name], value):
            yield "inputs left as they were", f"{name} changed", "an in-place operation (+=, masked_fill_, …)"
    if repr(case.objective) != fields:
        yield (
            "fields left as they were",
            repr(case.objective),
            "running numbers change in `adapted`, by dataclasses.replace",
        )


def _tensors(case: Case) -> Iterator[tuple[str, Tensor]]:
    for owner in ("batch", "policy", "old", "reference"):
        record = getattr(case, owner)
        for field in dataclasses.fields(record) if record is not None else ():
            value = getattr(record, field.name)
            items = value.items() if isinstance(value, Mapping) else [("", value)]
            yield from ((f"{owner}.{field.name}{key}", item) for key, item in items if isinstance(item, Tensor))


def _extremes(case: Case) -> Iterator[Finding]:
    """Log-ratios of ±1e4, on either side, in the float32 of a real run."""
    case = case.single()
    for sign in (1.0, -1.0):
        scale = sign * torch.tensor([1.0, -1.0]).repeat(case.batch.present.numel())
        moved = {}
        for name, value in case.policy.fields().items():
            rows = scale[: value[..., 0].numel() if value.ndim == 3 else value.numel()]
            shift = 1e4 * rows.view(value.shape[:2])
            if name in case.policy.statistics:
                shift = shift.abs() * sign_of(name)
            moved[name] = value + (shift if value.ndim == 2 else shift[..., None] * case.batch.mask / 5)
        for name, value in moved.items():
            traced, leaves = with_leaves(with_outputs(case, {name: value}))
            total = traced.loss().total
            gradients = gradients_of(total.sum(), leaves)
            if not total.isfinite().all() or any(not g.isfinite().all() for g in gradients.values()):
                yield (
                    f"numbers and finite gradients at policy.{name} ± 1e4",
                    f"total {total.tolist()} and a gradient as large as "
                    f"{max(g.abs().max().item() for g in gradients.values()):.3g}",
                    "exp or log of a large number: use logsigmoid, logaddexp, softplus, or clamp the exponent",
                )


def _adapts(case: Case) -> Iterator[Finding]:
    if not isinstance(case.objective, Adaptive):
        return
    metrics = {name: float(value.double().nanmean()) for name, value in case.loss().metrics.items()}
    metrics |= dict(case.targets().metrics) | {"loss": 0.0}
    once, twice = case.objective.adapted(metrics), case.objective.adapted(metrics)
    if type(once) is not type(case.objective):
        yield (
            f"a {type(case.objective).__name__} from `adapted`",
            type(once).__name__,
            "return dataclasses.replace(self, …)",
        )
    elif once != twice:
        yield "the same result from the same metrics", f"{once} and {twice}", "randomness, or state outside the fields"


CHECKS: Mapping[str, Callable[[Case], Iterator[Finding]]] = {
    "runs": _runs,
    "inputs untouched": _pure,  # early: the others call `loss` again and again
    "shapes": _shapes,
    "deterministic": _deterministic,
    "padding": padding,
    "no gradient on padding": padding_gradient,
    "environment tokens": environment_tokens,
    "absent completions": absent,
    "reordering": reordering,
    "row slices": row_slices,
    "gradient": gradient,
    "prefers chosen": prefers_chosen,
    "uses reference": uses_reference,
    "starts at the reference": starts_at_the_reference,
    "extremes": _extremes,
    "adapts": _adapts,
}
