"""Checks of gradients: that they are the derivatives of the loss, and that they point where they should."""

import dataclasses
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from prefopt.objectives.contract.case import Case, same
from prefopt.objectives.contract.finding import Finding, difference
from prefopt.objectives.contract.gradients import StopGradients, gradients_of, with_leaves, with_outputs
from prefopt.types import ORIGINS


def gradient(case: Case) -> Iterator[Finding]:
    """Directional derivatives against central differences; what the objective detached stays constant."""
    traced, leaves = with_leaves(case)
    stopped = StopGradients()
    with stopped:
        gradients = gradients_of(traced.loss().total.sum(), leaves)
    draw = torch.Generator().manual_seed(1)
    for name, leaf in leaves.items():
        step = torch.randn(leaf.shape, generator=draw, dtype=leaf.dtype)
        if leaf.ndim == 3:
            step = step * case.batch.mask
        sides = []
        for sign in (1, -1):
            moved = with_outputs(case, {name: leaf.detach() + sign * 1e-6 * step})
            with stopped.replayed():
                sides.append(moved.loss().total.sum())
        expected, got = ((sides[0] - sides[1]) / 2e-6).item(), (gradients[name] * step).sum().item()
        if not abs(expected - got) <= 1e-5 * max(1.0, abs(expected)):
            yield (
                f"autograd to agree with finite differences on policy.{name}: {expected:.6g}",
                f"{got:.6g}",
                "a value computed through .item(), .data or torch.no_grad() that depends on the policy",
            )


def padding_gradient(case: Case) -> Iterator[Finding]:
    """No token outside the mask may have a gradient."""
    traced, leaves = with_leaves(case)
    for name, gradient in gradients_of(traced.loss().total.sum(), leaves).items():
        if gradient.ndim == 3 and gradient[~case.batch.mask].abs().max() > 0:
            yield "no gradient outside the mask", f"one on policy.{name}", "a sum over T without the mask"


def prefers_chosen(case: Case) -> Iterator[Finding]:
    """A loss must fall as the better completions get likelier."""
    needs = case.objective.needs
    if needs.rollouts and (needs.scores or needs.preference):
        yield from _prefers_what_is_scored_higher(case)
        return
    push = _better(case)
    if push is None:
        return
    scores = "step_rewards" if needs.step_rewards else "rewards"
    name = scores if needs.rewards else "logps"
    value = getattr(case.policy, name)
    assert value is not None
    moved = value + 1e-3 * (push if value.ndim == push.ndim else push[..., None] * case.batch.mask)
    before, after = case.loss().total, with_outputs(case, {name: moved}).loss().total
    if not (after <= before + 1e-12).all() or not (after < before).any():
        yield (
            "a lower total once the better completions are likelier and the worse less so",
            difference(before, after),
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
    if batch.named_scores:
        changes["named_scores"] = {name: scores.clone() for name, scores in batch.named_scores.items()}
        for scores in changes["named_scores"].values():
            scores[row, k] += 10 * sign
    if batch.preference is not None:
        changes["preference"] = batch.preference.clone()
        changes["preference"][row, k] = (1 + sign) / 2
        changes["preference"][row, :, k] = (1 - sign) / 2
    return dataclasses.replace(case, batch=dataclasses.replace(batch, **changes))


def _slope(case: Case, row: int, k: int) -> float:
    """Of the loss, as all log-probs of one completion rise."""
    traced, leaves = with_leaves(case)
    return gradients_of(traced.loss().total.sum(), leaves)["logps"][row, k].sum().item()


def _better(case: Case) -> Tensor | None:
    """[B, K]: +1 for the best completion of a prompt, −1 for the worst; [B, K, T] where steps are right and wrong; or None."""
    batch, needs = case.batch, case.objective.needs
    if "step_labels" in needs.columns:
        return (batch.columns["step_labels"] - 0.5).sign() * batch.step_ends
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


def uses_reference(case: Case) -> Iterator[Finding]:
    """Another reference must give another loss."""
    if case.reference is None or case.reference.logps is None:
        return
    draw = torch.Generator().manual_seed(2)
    noise = torch.rand(case.reference.logps.shape, generator=draw, dtype=torch.float64) * case.batch.mask
    other = dataclasses.replace(case, reference=dataclasses.replace(case.reference, logps=case.reference.logps - noise))
    if case.objective.needs.rollouts:  # whose KL may be the exact one alone, which the policy tells
        exact = {n: v + noise for n, v in case.policy.statistics.items() if "ref" in n.split("_")}
        other = with_outputs(other, exact)
    if same(case.loss().total, other.loss().total):
        yield (
            "another total with another reference",
            "the same one",
            "`needs.reference` is declared but `targets` ignores it",
        )


def starts_at_the_reference(case: Case) -> Iterator[Finding]:
    """A policy that is its reference: all log-ratios are 0, whatever log-probs both give to the tokens.

    Of online objectives the gradient is compared: the value of −A log π means nothing.
    """
    if case.reference is None or case.policy.logps is None:
        return

    own, online = case.policy.logps, case.objective.needs.rollouts

    def total(scale: float) -> Tensor:
        logps = own * scale
        exact = {name: torch.zeros_like(logps) for name in case.policy.statistics if "ref" in name.split("_")}
        policy = case.policy.with_fields({"logps": logps, **exact})
        drawn = {"sampler_logps": logps} if "sampler_logps" in case.batch.columns else {}
        batch = dataclasses.replace(case.batch, columns={**case.batch.columns, **drawn})
        same = dataclasses.replace(case, batch=batch, policy=policy, old=case.old and policy, reference=policy)
        if not online:
            return same.loss().total
        traced, leaves = with_leaves(same)
        return gradients_of(traced.loss().total.sum(), leaves)["logps"].sum((1, 2))

    if not same(total(1.0), total(0.5)):
        yield (
            f"one {'gradient' if online else 'total'} for every policy that is its own reference, since all log-ratios are 0",
            difference(total(1.0), total(0.5)),
            "policy and reference are reduced in different ways, such as a mean for a sum; a term that imitates, without the "
            "reference, is a declared exception",
        )
