"""Episodes in a plain text: messages say who wrote what, and nothing is written between them.

Behind a prompt that is text, a completion may be messages of the roles `assistant` and `environment`. Their contents follow one
another as they are, without a chat template, as `prefopt.environments.transcript` has them while they are written.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from prefopt.data.example import Completion, Example
from prefopt.data.rendering import REASONING
from prefopt.data.values import fail, one_per_completion, shown
from prefopt.types import Message, Prompt

ASSISTANT, ENVIRONMENT = "assistant", "environment"

EOS = "eos"
"""Column of rows: for each completion that is text, whether EOS ends it; it does unless a row says otherwise."""

AS_CONVERSATION = "for a conversation that the chat template writes, give the prompt as a list of messages, too"


def is_text_episode(prompt: Prompt, completions: Sequence[Completion]) -> bool:
    """Whether a row is one: a text is gone on with by messages, of which some are the environment's."""
    return isinstance(prompt, str) and any(
        message["role"] == ENVIRONMENT
        for completion in completions
        if not isinstance(completion, str)
        for message in completion
    )


def has_text_episodes(example: Example) -> bool:
    """Whether an example is of such a row: its prompt is text, and a completion is messages."""
    return isinstance(example.prompt, str) and any(not isinstance(one, str) for one in example.completions)


def text_episodes(completions: Sequence[Completion], where: str) -> tuple[Completion, ...]:
    """The completions of such a row, each up to the assistant's last turn; a text among them is an episode of one turn.

    Raises:
        PrefoptError: a message of another role or with more than content, a turn without words, or no turn of the assistant's.
    """
    return tuple(_episode(completion, where) for completion in completions)


def _episode(completion: Completion, where: str) -> tuple[Message, ...]:
    if isinstance(completion, str):
        return ({"role": ASSISTANT, "content": completion},)
    for message in completion:
        if message["role"] not in (ASSISTANT, ENVIRONMENT):
            fail(
                where,
                f"a message of {message['role']!r} beside one of the environment, behind a prompt that is text: an episode in a "
                f"plain text has messages of 'assistant' and 'environment'; {AS_CONVERSATION}",
            )
        if unwritten := [key for key in ("tool_calls", *REASONING) if message.get(key)]:
            fail(
                where,
                f"a message of {message['role']!r} has {unwritten[0]!r}, which nothing writes in a plain text: put it into "
                f"'content' as the policy wrote it; {AS_CONVERSATION}",
            )
    own = [place for place, message in enumerate(completion) if message["role"] == ASSISTANT]
    if not own:
        fail(where, "a completion in which only the environment speaks; it must end with a turn of the assistant's")
    if any(not completion[place]["content"] for place in own[:-1]):
        fail(
            where,
            "an empty turn of the assistant's before its last: give what the policy wrote, the text of the token that ended "
            "it included, or leave the turn out",
        )
    return tuple({"role": one["role"], "content": one["content"]} for one in completion[: own[-1] + 1])


class Spoken:
    """Refuses a file that has such rows, and others that are conversations for want of a word of the environment's."""

    def __init__(self) -> None:
        self._first: dict[bool, str] = {}

    def add(self, example: Example, prompt: Any) -> None:
        """One more row, and its prompt as it was given.

        Raises:
            PrefoptError: rows of both kinds were added.
        """
        if isinstance(prompt, str) and any(not isinstance(one, str) for one in example.completions):
            self._first.setdefault(has_text_episodes(example), example.where)
        if len(self._first) > 1:
            fail(
                example.where,
                f"{self._first[True]} is an episode in a plain text, and {self._first[False]} a conversation, since the "
                "environment says nothing in it. Add an empty message of the environment to an episode without one, "
                f'{{"role": "environment", "content": ""}}; {AS_CONVERSATION}',
            )


def as_data(example: Example) -> tuple[Completion, ...]:
    """The completions as rows have them: an episode without a word of the environment's ends with an empty one, which tells it."""
    if not has_text_episodes(example):
        return example.completions
    return tuple(one if isinstance(one, str) else told_apart(one) for one in example.completions)


def told_apart(episode: Sequence[Message]) -> tuple[Message, ...]:
    """The messages of an episode in a plain text, from which a reader of the row can tell that it is one."""
    silent: Message = {"role": ENVIRONMENT, "content": ""}
    return tuple(episode) if ENVIRONMENT in roles_of(tuple(episode)) else (*episode, silent)


def opening_of(example: Example) -> int:
    """How many messages of the environment's are at the beginning of all completions: they belong to the prompt, as in rollouts."""
    if not has_text_episodes(example):
        return 0
    shared = 0
    for messages in zip(*(one for one in example.completions if not isinstance(one, str)), strict=False):
        if any(message["role"] != ENVIRONMENT or message != messages[0] for message in messages):
            break
        shared += 1
    return shared


def as_seen(example: Example) -> Example:
    """An example as feedback sees such episodes when they are written: prompt with opening, and each completion as one text.

    Any other example is returned as it is.
    """
    if not has_text_episodes(example):
        return example
    opening, first = opening_of(example), example.completions[0]
    said = "".join(contents_of(first)[:opening])
    return dataclasses.replace(
        example,
        prompt=f"{example.prompt}{said}",
        completions=tuple("".join(contents_of(one)[opening:]) for one in example.completions),
    )


def roles_of(completion: Completion) -> list[str]:
    """Who speaks, in order; a text is a turn of the assistant's."""
    return [ASSISTANT] if isinstance(completion, str) else [str(message["role"]) for message in completion]


def contents_of(completion: Completion) -> list[str]:
    """What is said, in order."""
    return [completion] if isinstance(completion, str) else [str(message["content"]) for message in completion]


def ends_with_eos(value: Any, prompt: Prompt, size: int, where: str) -> list[bool]:
    """The column `eos`.

    Raises:
        PrefoptError: something else than truth values, one for each completion, or one that is false in a conversation.
    """
    values = one_per_completion(value, EOS, size, where)
    for one in values:
        if not isinstance(one, bool):
            fail(
                where,
                f"{EOS!r} must say of each completion whether EOS ends it, true or false, not {shown(one)}. If the column is "
                "something else, rename it, e.g. by `source: {adapt: file.py:function}`",
            )
    if not isinstance(prompt, str) and not all(values):
        fail(
            where,
            f"{EOS!r} is false, and this is a conversation, whose turns the chat template ends: leave the column out, or give the "
            "prompt as text",
        )
    return values


def eos_of(columns: Mapping[str, Any], size: int) -> Sequence[bool]:
    """Of each of K completions, whether EOS ends it."""
    values: Sequence[bool] = columns.get(EOS) or (True,) * size
    return values
