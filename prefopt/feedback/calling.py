"""Calling a feedback: what it says is checked, how long it takes is limited, and its running numbers are kept."""

import dataclasses
import math
import threading
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from prefopt.support.errors import PrefoptError
from prefopt.types import Feedback, Prompt, Verdict


@runtime_checkable
class Stateful(Protocol):
    """What has running numbers, which a checkpoint must hold: a feedback, or a part of one."""

    def state_dict(self) -> dict[str, Any]:
        """The numbers."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take them up again."""
        ...


@runtime_checkable
class Loadable(Protocol):
    """What needs something from disk: a model, a tokenizer, a function."""

    def check(self) -> None:
        """Refuse what is not there or cannot serve; loads no model."""
        ...

    def load(self) -> None:
        """Load it now, and not at the first call, in the middle of a run."""
        ...


@runtime_checkable
class Spending(Protocol):
    """What costs something: a judge."""

    @property
    def spent(self) -> Mapping[str, float]:
        """What it has used so far, by name: calls, tokens, money."""
        ...


@runtime_checkable
class Foreseeing(Protocol):
    """What can be asked ahead, while the policy still writes other texts: it waits for somebody else, and remembers the answers."""

    @property
    def foresees(self) -> bool:
        """Whether it does, the way it is set up."""
        ...

    def ahead(
        self, prompts: Sequence[Prompt], completions: Sequence[Sequence[str]], rows: Sequence[Mapping[str, Any]]
    ) -> None:
        """Begin to ask in the background what it will be called with, among more."""
        ...


def state_of(part: Any) -> dict[str, Any]:
    """The running numbers of a feedback or a part of one; {} where it has none."""
    return part.state_dict() if isinstance(part, Stateful) else {}


def restore(part: Any, state: dict[str, Any]) -> None:
    """Give back what `state_of` said."""
    if isinstance(part, Stateful):
        part.load_state_dict(state)


def run_feedback(
    feedback: Feedback | Any,
    name: str,
    prompts: Sequence[Prompt],
    completions: Sequence[Sequence[str]],
    rows: Sequence[Mapping[str, Any]],
    timeout: float | None = None,
) -> Verdict:
    """Call any feedback and check what it says.

    None and NaN are no verdict: they come back as NaN, never as a number.

    Args:
        feedback: called with the next three.
        name: what messages call it.
        prompts: B of them.
        completions: K texts for each.
        rows: the other columns of each.
        timeout: seconds that it may take; None waits for as long as it takes. What is not back by then goes on in a thread that
            nobody listens to, because Python cannot stop one.

    Raises:
        PrefoptError: it raised something, took too long, or returned something else than B × K finite numbers; says which feedback.
    """
    answer = _answer(feedback, name, (prompts, completions, rows), timeout)
    verdict = answer if isinstance(answer, Verdict) else Verdict(_scores(answer, name))
    if not isinstance(verdict.scores, Tensor):
        raise PrefoptError(
            f"the feedback {name} returned scores that are a {type(verdict.scores).__name__}, not a tensor"
        )
    expected = [len(prompts), max((len(row) for row in completions), default=0)]
    if list(verdict.scores.shape) != expected:
        raise PrefoptError(
            f"the feedback {name} returned scores of shape {list(verdict.scores.shape)} for "
            f"{expected[0]} prompts × {expected[1]} completions; expected one number for each completion"
        )
    if verdict.preference is not None and list(verdict.preference.shape) != [*expected, expected[1]]:
        raise PrefoptError(
            f"the feedback {name} returned preference of shape {list(verdict.preference.shape)}; expected "
            f"{[*expected, expected[1]]}, P(y_i beats y_j)"
        )
    if verdict.preference is not None and not ((verdict.preference >= 0) & (verdict.preference <= 1)).all():
        raise PrefoptError(
            f"the feedback {name} returned preference that is not between 0 and 1; NaN is no verdict there"
        )
    if verdict.notes and len(verdict.notes) != len(prompts):
        raise PrefoptError(f"the feedback {name} returned {len(verdict.notes)} notes for {len(prompts)} prompts")
    if not verdict.scores.is_floating_point():
        verdict = dataclasses.replace(verdict, scores=verdict.scores.float())
    refuse_infinite(verdict.scores, f"the feedback {name}")
    return verdict


def refuse_infinite(scores: Tensor, name: str) -> None:
    """No sum or mean survives an infinite score, and it would surface far from where it was made.

    Raises:
        PrefoptError: there is one; says where.
    """
    if (found := scores.isinf().nonzero()).numel():
        b, k = found[0].tolist()
        raise PrefoptError(
            f"{name} gave the score {scores[b, k]:g} to completion {k + 1} of prompt {b + 1}; "
            "scores are finite, or NaN for no verdict"
        )


def _answer(feedback: Any, name: str, given: Sequence[Any], timeout: float | None) -> Any:
    said: list[Any] = []
    raised: list[Exception] = []

    def call() -> None:
        try:
            said.append(feedback(*given))
        except Exception as error:
            raised.append(error)

    if timeout is None:
        call()
    else:
        # A daemon, so that a feedback that never returns cannot keep the program from ending.
        thread = threading.Thread(target=call, name=f"feedback {name}", daemon=True)
        thread.start()
        thread.join(timeout)
        if thread.is_alive():
            raise PrefoptError(
                f"the feedback {name} was not back after {timeout:g} seconds on {len(given[0])} prompts; "
                "make it faster, or give it longer: `timeout`"
            )
    if raised and isinstance(raised[0], PrefoptError):
        raise raised[0]
    if raised:
        raise PrefoptError(f"the feedback {name} raised {type(raised[0]).__name__}: {raised[0]}") from raised[0]
    return said[0]


def _scores(answer: Any, name: str) -> Tensor:
    try:
        numbers = [[math.nan if score is None else float(score) for score in row] for row in answer]
        return torch.tensor(numbers)
    except (TypeError, ValueError) as error:
        raise PrefoptError(f"the feedback {name} must return a list of numbers for each prompt: {error}") from error
