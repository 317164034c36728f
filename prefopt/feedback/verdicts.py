"""Checking a verdict, and combining the parts of several verdicts that are not scores of whole completions."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from prefopt.support.errors import PrefoptError
from prefopt.types import Verdict

Combine = Callable[[Tensor], Tensor]
"""[M, ...] of M members to [...]."""


def checked(verdict: Verdict, name: str, completions: Sequence[Sequence[Any]]) -> Verdict:
    """The verdict, its scores as floats.

    Args:
        verdict: of B prompts with up to K completions each.
        name: what messages call the feedback.
        completions: what it was asked about.

    Raises:
        PrefoptError: a field has another shape, or a number that it may not have; says which field.
    """
    expected = (len(completions), max(map(len, completions), default=0))
    _check_tensor(verdict.scores, "scores", name, expected)
    for key, scores in verdict.named.items():
        _check_tensor(scores, f"named[{key!r}]", name, expected)
    if verdict.preference is not None:
        _check_preference(verdict.preference, name, (*expected, expected[1]))
    if verdict.notes and len(verdict.notes) != len(completions):
        raise PrefoptError(f"the feedback {name} returned {len(verdict.notes)} notes for {len(completions)} prompts")
    if verdict.steps is not None:
        _check_steps(verdict.steps, name, completions)
    verdict = _plain_verdict(verdict)
    refuse_infinite(verdict.scores, f"the feedback {name}")
    for key, scores in verdict.named.items():
        refuse_infinite(scores, f"the feedback {name}, in named[{key!r}],")
    return verdict


def _plain_verdict(verdict: Verdict) -> Verdict:
    """The verdict itself, or one with plain tensors where they are not."""
    plain: dict[str, Any] = {name: _plain(scores) for name, scores in verdict.named.items()}
    changed: dict[str, Any] = {"named": plain} if any(plain[n] is not verdict.named[n] for n in plain) else {}
    for name in ("scores", "preference"):
        value = getattr(verdict, name)
        if value is not None and _plain(value) is not value:
            changed[name] = _plain(value)
    return dataclasses.replace(verdict, **changed) if changed else verdict


def _plain(values: Tensor) -> Tensor:
    """On the CPU and without gradient, in fp32 or fp64: half precision would round what is done with them afterwards."""
    values = values.detach() if values.requires_grad else values
    return (values if values.dtype in (torch.float32, torch.float64) else values.float()).cpu()


def _check_tensor(scores: Any, what: str, name: str, expected: tuple[int, int]) -> None:
    if not isinstance(scores, Tensor):
        raise PrefoptError(f"the feedback {name} returned {what} that are a {type(scores).__name__}, not a tensor")
    if scores.is_complex():
        raise PrefoptError(f"the feedback {name} returned {what} of type {scores.dtype}; scores are real numbers")
    if scores.shape != expected:
        raise PrefoptError(
            f"the feedback {name} returned {what} of shape {list(scores.shape)} for "
            f"{expected[0]} prompts × {expected[1]} completions; expected one number for each completion"
        )


def _check_preference(preference: Tensor, name: str, expected: tuple[int, int, int]) -> None:
    if preference.shape != expected:
        raise PrefoptError(
            f"the feedback {name} returned preference of shape {list(preference.shape)}; expected "
            f"{list(expected)}, P(y_i beats y_j)"
        )
    if not ((preference >= 0) & (preference <= 1)).all():
        raise PrefoptError(
            f"the feedback {name} returned preference that is not between 0 and 1; NaN is no verdict there"
        )


def _check_steps(steps: Any, name: str, completions: Sequence[Sequence[Any]]) -> None:
    """Numbers for each completion, as many as it has turns: what a source knows, and this does not."""
    try:
        sizes = [len(row) for row in steps]
        numbers = [(b, k, float(value)) for b, row in enumerate(steps) for k, one in enumerate(row) for value in one]
    except (TypeError, ValueError) as error:
        raise PrefoptError(
            f"the feedback {name} returned steps that are not a list of numbers for each completion of each prompt: {error}"
        ) from error
    if sizes != [len(row) for row in completions]:
        raise PrefoptError(
            f"the feedback {name} returned steps of {sizes} completions of each prompt; expected "
            f"{[len(row) for row in completions]}, a list of numbers for each completion"
        )
    for b, k, value in numbers:
        if not math.isfinite(value):
            raise PrefoptError(
                f"the feedback {name} returned the step {value:g} for completion {k + 1} of prompt {b + 1}; steps are finite, "
                "and 0 where nothing is known of one"
            )


def refuse_infinite(scores: Tensor, name: str) -> None:
    """No sum or mean survives an infinite score, and it would surface far from where it was made.

    Raises:
        PrefoptError: there is one; says where.
    """
    if (infinite := scores.isinf().nonzero()).numel():
        b, k = infinite[0].tolist()
        raise PrefoptError(
            f"{name} gave the score {scores[b, k]:g} to completion {k + 1} of prompt {b + 1}; "
            "scores are finite, or NaN for no verdict"
        )


def combined_named(verdicts: Sequence[Verdict], combine: Combine) -> dict[str, Tensor]:
    """Each named score, over those members that give it."""
    names = dict.fromkeys(name for verdict in verdicts for name in verdict.named)
    return {
        name: combine(torch.stack([v.named[name].double().cpu() for v in verdicts if name in v.named])).float()
        for name in names
    }


def combined_steps(verdicts: Sequence[Verdict], combine: Combine) -> list[list[list[float]]] | None:
    """The numbers of turns or steps, over all members; those that give none give 0. None where no member gives any.

    Raises:
        PrefoptError: two members see another number of steps in one completion.
    """
    given = [verdict.steps for verdict in verdicts if verdict.steps is not None]
    if not given:
        return None
    without = len(verdicts) - len(given)

    def one(b: int, k: int) -> list[float]:
        lists = [list(map(float, steps[b][k])) for steps in given]
        sizes = {len(numbers) for numbers in lists}
        if len(sizes) > 1:
            raise PrefoptError(
                f"members give {' and '.join(map(str, sorted(sizes)))} numbers in `steps` to completion {k + 1} of prompt "
                f"{b + 1}; they must agree on what its steps are"
            )
        if not lists[0]:  # torch warns of the variance of nothing
            return []
        values: list[float] = combine(torch.tensor(lists + [[0.0] * len(lists[0])] * without).double()).tolist()
        return values

    return [[one(b, k) for k in range(len(row))] for b, row in enumerate(given[0])]
