"""The checks of the contract, each a small one; what is found wrong says what was expected, what came, and the likely cause."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from prefopt.objectives.contract.case import Case, same, sign_of
from prefopt.types import ORIGINS, Adaptive, Batch, Loss, Outputs, Targets

Finding = tuple[str, str, str]


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
                _shape(value),
                "a number over the batch belongs in `metrics`, or expanded to [B]",
            )
    loss = _leaves(case)[0].loss(targets)
    if not isinstance(loss, Loss):
        yield "prefopt.Loss from `loss`", type(loss).__name__, "return Loss(total, metrics)"
        return
    for what, value in {"total": loss.total, **loss.metrics}.items():
        if not isinstance(value, Tensor) or value.shape != (rows,):
            cause = "a mean or sum over the batch: leave that to the trainer"
            if isinstance(value, Tensor) and value.shape[:1] == (rows,):
                cause = "a number for each completion or token: reduce them to one for each prompt"
            yield f"{what} of shape [{rows}]", _shape(value), cause
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


def _padding(case: Case) -> Iterator[Finding]:
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
            _difference(expected, got),
            "padding counted: use batch.mask, Outputs.sum() and mean()",
        )


def _padding_gradient(case: Case) -> Iterator[Finding]:
    traced, leaves = _leaves(case)
    for name, gradient in _gradients(traced.loss().total.sum(), leaves).items():
        if gradient.ndim == 3 and gradient[~case.batch.mask].abs().max() > 0:
            yield "no gradient outside the mask", f"one on policy.{name}", "a sum over T without the mask"


def _absent(case: Case) -> Iterator[Finding]:
    """What an absent completion has is never to be read."""
    absent = ~case.batch.present
    if not absent.any():
        return
    rows = {name: value.clone() for name, value in case.batch.columns.items()}
    for name, value in rows.items():
        if case.batch.axis(name) != "prompt" and value.is_floating_point():
            value[absent] = 0.75
    changes: dict[str, Any] = {"columns": rows}
    if case.batch.scores is not None:
        changes["scores"] = case.batch.scores.masked_fill(absent, 0.75)
    changes["named_scores"] = {name: s.masked_fill(absent, 0.75) for name, s in case.batch.named_scores.items()}
    if case.batch.preference is not None:
        either = absent[:, :, None] | absent[:, None, :]
        changes["preference"] = case.batch.preference.masked_fill(either, 0.75)

    def outputs(o: Outputs) -> Outputs:
        return o if o.rewards is None else dataclasses.replace(o, rewards=o.rewards.masked_fill(absent, 0.75))

    expected, other = case.loss().total, case.transformed(lambda b: dataclasses.replace(b, **changes), outputs)
    got = other.loss().total
    if not same(expected, got):
        yield (
            "the same total whatever an absent completion's score, reward or columns",
            _difference(expected, got),
            "a sum or mean over K without batch.present",
        )


def _reordering(case: Case) -> Iterator[Finding]:
    order = torch.arange(len(case.batch)).roll(1)
    own, moved = case.targets(), case.transformed(lambda b: b.rows(order), lambda o: o.rows(order))
    expected = case.loss(own).total[order]
    got = moved.loss(own.select(order) if case.draws() else None).total
    if not same(expected, got):
        yield (
            "totals that move with their prompts",
            _difference(expected, got),
            "a place in the batch is used as if it meant something",
        )


def _row_slices(case: Case) -> Iterator[Finding]:
    if case.objective.needs.whole_batch:
        return
    expected, targets = case.loss().total, case.targets()
    for rows in (torch.tensor([0]), torch.tensor([2, 1, 3])):
        got = case.objective.loss(case.batch.rows(rows), case.policy.rows(rows), targets.select(rows)).total
        if not same(expected[rows], got):
            yield (
                "the same totals when rows are taken apart",
                _difference(expected[rows], got),
                "a statistic over the batch in `loss`: compute it in `targets`, or declare whole_batch=True",
            )


def _gradient(case: Case) -> Iterator[Finding]:
    """Directional derivatives against central differences; what the objective detached is held where it was."""
    traced, leaves = _leaves(case)
    held = _Held()
    with held:
        gradients = _gradients(traced.loss().total.sum(), leaves)
    draw = torch.Generator().manual_seed(1)
    for name, leaf in leaves.items():
        step = torch.randn(leaf.shape, generator=draw, dtype=leaf.dtype)
        if leaf.ndim == 3:
            step = step * case.batch.mask
        sides = []
        for sign in (1, -1):
            moved = _with(case, {name: leaf.detach() + sign * 1e-6 * step})
            with held.replayed():
                sides.append(moved.loss().total.sum())
        expected, got = ((sides[0] - sides[1]) / 2e-6).item(), (gradients[name] * step).sum().item()
        if not abs(expected - got) <= 1e-5 * max(1.0, abs(expected)):
            yield (
                f"autograd to agree with finite differences on policy.{name}: {expected:.6g}",
                f"{got:.6g}",
                "a value computed through .item(), .data or torch.no_grad() that depends on the policy",
            )


def _prefers_chosen(case: Case) -> Iterator[Finding]:
    needs = case.objective.needs
    if needs.rollouts and (needs.scores or needs.preference):
        yield from _prefers_what_is_scored_higher(case)
        return
    push = _better(case)
    if push is None:
        return
    name = "rewards" if case.objective.needs.rewards else "logps"
    value = getattr(case.policy, name)
    assert value is not None
    moved = value + 1e-3 * (push if value.ndim == 2 else push[..., None] * case.batch.mask)
    before, after = case.loss().total, _with(case, {name: moved}).loss().total
    if not (after <= before + 1e-12).all() or not (after < before).any():
        yield (
            "a lower total once the better completions are likelier and the worse less so",
            _difference(before, after),
            "a flipped sign, or chosen and rejected swapped",
        )


def _prefers_what_is_scored_higher(case: Case) -> Iterator[Finding]:
    """Of online objectives, whose surrogates have a meaningful gradient alone, and whose baselines come from elsewhere.

    Each completion in turn is judged much better and much worse than it was: the better it is judged, the more the loss must fall
    as it gets likelier.
    """
    moved = False
    for row, k in case.batch.present.nonzero().tolist():
        slopes = [_slope(_judged(case, row, k, sign), row, k) for sign in (1, -1)]
        moved |= slopes[0] < slopes[1] - 1e-12
        if slopes[0] > slopes[1] + 1e-12:
            yield (
                "a completion to be pulled up harder when it is judged better",
                f"slopes {slopes[0]:.6g} (better) and {slopes[1]:.6g} (worse) of the loss along its log-probs",
                "a flipped sign of the advantage, the score or the preference",
            )
            return
    if not moved:
        yield "judgement to change the gradient", "the same gradient", "scores or preferences are not used"


def _judged(case: Case, row: int, k: int, sign: int) -> Case:
    """The same case, with one completion far better or far worse than it was."""
    batch = case.batch
    changes: dict[str, Any] = {}
    if batch.scores is not None:
        changes["scores"] = batch.scores.clone()
        changes["scores"][row, k] += 10 * sign
    if batch.preference is not None:
        changes["preference"] = batch.preference.clone()
        changes["preference"][row, k] = (1 + sign) / 2
        changes["preference"][row, :, k] = (1 - sign) / 2
    return dataclasses.replace(case, batch=dataclasses.replace(batch, **changes))


def _slope(case: Case, row: int, k: int) -> float:
    """Of the loss, as all log-probs of one completion rise."""
    traced, leaves = _leaves(case)
    return _gradients(traced.loss().total.sum(), leaves)["logps"][row, k].sum().item()


def _better(case: Case) -> Tensor | None:
    """[B, K]: +1 for the best completion of a prompt, −1 for the worst; None where nothing says which."""
    batch, needs = case.batch, case.objective.needs
    merits = None
    if needs.ordered:
        merits = -torch.arange(batch.mask.shape[1], dtype=torch.float64).expand(batch.present.shape)
    elif needs.scores:
        merits = batch.scores
    elif needs.preference and batch.preference is not None:
        merits = batch.preference.mean(-1)
    elif "origin" in needs.columns:  # nobody is asked: the data's completion is the better one
        return torch.where(batch.columns["origin"] == ORIGINS.index("dataset"), 1.0, -1.0).double()
    if merits is None:
        return None
    first = torch.arange(batch.mask.shape[1]) == 0
    if batch.mask.shape[1] == 1 and needs.ordered:
        return first.expand(batch.present.shape)
    if batch.mask.shape[1] == 1 or "origin" in needs.columns:  # labels
        return merits.sign() * first
    best = merits.masked_fill(~batch.present, -torch.inf).argmax(-1)
    worst = merits.masked_fill(~batch.present, torch.inf).argmin(-1)
    eye = torch.eye(batch.mask.shape[1], dtype=torch.float64)
    return eye[best] - eye[worst]


def _uses_reference(case: Case) -> Iterator[Finding]:
    if case.reference is None or case.reference.logps is None:
        return
    draw = torch.Generator().manual_seed(2)
    noise = torch.rand(case.reference.logps.shape, generator=draw, dtype=torch.float64) * case.batch.mask
    other = dataclasses.replace(case, reference=dataclasses.replace(case.reference, logps=case.reference.logps - noise))
    if case.objective.needs.rollouts:  # whose KL may be the exact one alone, which the policy tells
        exact = {n: v + noise for n, v in case.policy.statistics.items() if "ref" in n.split("_")}
        other = _with(other, exact)
    if same(case.loss().total, other.loss().total):
        yield (
            "another total with another reference",
            "the same one",
            "`needs.reference` is declared but `targets` ignores it",
        )


def _starts_at_the_reference(case: Case) -> Iterator[Finding]:
    """A policy that is its reference: all log-ratios are 0, whatever both say of the tokens.

    Of online objectives the gradient is compared: the value of −A log π means nothing.
    """
    if case.reference is None or case.policy.logps is None:
        return

    said, online = case.policy.logps, case.objective.needs.rollouts

    def total(scale: float) -> Tensor:
        logps = said * scale
        exact = {name: torch.zeros_like(logps) for name in case.policy.statistics if "ref" in name.split("_")}
        policy = case.policy.with_fields({"logps": logps, **exact})
        drawn = {"sampler_logps": logps} if "sampler_logps" in case.batch.columns else {}
        batch = dataclasses.replace(case.batch, columns={**case.batch.columns, **drawn})
        same = dataclasses.replace(case, batch=batch, policy=policy, old=case.old and policy, reference=policy)
        if not online:
            return same.loss().total
        traced, leaves = _leaves(same)
        return _gradients(traced.loss().total.sum(), leaves)["logps"].sum((1, 2))

    if not same(total(1.0), total(0.5)):
        yield (
            f"one {'gradient' if online else 'total'} for every policy that is its own reference, since all log-ratios are 0",
            _difference(total(1.0), total(0.5)),
            "policy and reference are reduced in different ways, such as a mean for a sum; a term that imitates, without the "
            "reference, is a declared exception",
        )


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
            traced, leaves = _leaves(_with(case, {name: value}))
            total = traced.loss().total
            gradients = _gradients(total.sum(), leaves)
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
    "padding": _padding,
    "no gradient on padding": _padding_gradient,
    "absent completions": _absent,
    "reordering": _reordering,
    "row slices": _row_slices,
    "gradient": _gradient,
    "prefers chosen": _prefers_chosen,
    "uses reference": _uses_reference,
    "starts at the reference": _starts_at_the_reference,
    "extremes": _extremes,
    "adapts": _adapts,
}


class _Held(TorchFunctionMode):
    """Records what `Tensor.detach` returned, in order, and can play it back: stop-gradients become constants."""

    def __init__(self) -> None:
        super().__init__()
        self.values: list[Tensor] = []
        self.next: int | None = None

    def replayed(self) -> "_Held":
        """The same mode, from the first recorded value on."""
        self.next = 0
        return self

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func not in (Tensor.detach, torch.detach):
            return result
        if self.next is None:
            self.values.append(result)
            return result
        self.next += 1
        return self.values[self.next - 1]


def _with(case: Case, fields: Mapping[str, Tensor]) -> Case:
    return dataclasses.replace(case, policy=case.policy.with_fields(fields))


def _leaves(case: Case) -> tuple[Case, dict[str, Tensor]]:
    leaves = {name: value.detach().clone().requires_grad_() for name, value in case.policy.fields().items()}
    return _with(case, leaves), leaves


def _gradients(total: Tensor, leaves: Mapping[str, Tensor]) -> dict[str, Tensor]:
    found = torch.autograd.grad(total, list(leaves.values()), allow_unused=True)
    return {n: torch.zeros_like(leaf) if g is None else g for (n, leaf), g in zip(leaves.items(), found, strict=True)}


def _tensors(case: Case) -> Iterator[tuple[str, Tensor]]:
    for owner in ("batch", "policy", "old", "reference"):
        record = getattr(case, owner)
        for field in dataclasses.fields(record) if record is not None else ():
            value = getattr(record, field.name)
            items = value.items() if isinstance(value, Mapping) else [("", value)]
            yield from ((f"{owner}.{field.name}{key}", item) for key, item in items if isinstance(item, Tensor))


def _difference(a: Tensor, b: Tensor) -> str:
    if a.shape != b.shape:
        return f"shapes {list(a.shape)} and {list(b.shape)}"
    return f"{[round(x, 6) for x in b.tolist()]} instead of {[round(x, 6) for x in a.tolist()]}"


def _shape(value: Any) -> str:
    return str(list(value.shape)) if isinstance(value, Tensor) else type(value).__name__
