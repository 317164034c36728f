"""A conversation that is too long is begun at a later turn of the user's, so that every turn that is left is whole."""

import dataclasses
from bisect import bisect_left
from collections.abc import Callable, Sequence
from typing import Literal

from prefopt.data.example import Example
from prefopt.data.tokenised import Tokenised
from prefopt.types import Message

TooLong = Literal["cut", "drop", "cut_turns"]
"""`cut`: a prompt loses its beginning, a completion its end. `drop`: the row is left out. `cut_turns`: conversations lose their
earliest turns; what is too long even so, or is no conversation, is left out."""

SYSTEM = ("system", "developer")


def later_beginnings(example: Example) -> list[Example]:
    """The same conversation without its first turns, more and more of them: what the system says first stays, and a turn of the
    user's follows it.

    Only turns of the prompt go where there are several completions, which must answer the same one. A single completion of several
    turns goes on losing them, too: its first answers go, and the prompt is what the next one answers.
    """
    prompt = example.prompt
    if isinstance(prompt, str):
        return []
    first = next((i for i, turn in enumerate(prompt) if turn["role"] not in SYSTEM), len(prompt))
    system, asked = prompt[:first], prompt[first:]
    begun = [dataclasses.replace(example, prompt=(*system, *asked[i:])) for i in _users(asked) if i]
    if example.size == 1:
        (answers,) = example.completions
        assert not isinstance(answers, str)
        for i in _users(answers):
            answer = next(j for j in range(i, len(answers)) if answers[j]["role"] == "assistant")
            later = (*system, *answers[i:answer])
            begun.append(dataclasses.replace(example, prompt=later, completions=(answers[answer:],)))
    return begun


def _users(turns: Sequence[Message]) -> list[int]:
    return [i for i, turn in enumerate(turns) if turn["role"] == "user"]


def too_long(row: Tokenised, max_prompt: int | None, max_completion: int | None) -> str:
    """What of a row is longer than it may be: "prompt", "completion", or nothing."""
    if max_prompt is not None and len(row.prompt_ids) > max_prompt:
        return "prompt"
    return (
        "completion"
        if max_completion is not None and any(len(ids) > max_completion for ids in row.completion_ids)
        else ""
    )


def first_that_fits(
    beginnings: Sequence[Example], tokenised: Callable[[Example], Tokenised], fits: Callable[[Tokenised], bool]
) -> Example | None:
    """The earliest beginning that is short enough; None where even the last is not. Each is shorter than the one before."""
    at = bisect_left(beginnings, True, key=lambda example: fits(tokenised(example)))
    return beginnings[at] if at < len(beginnings) else None
