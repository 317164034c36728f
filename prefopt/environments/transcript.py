"""How what an environment says becomes tokens that the policy reads: as plain text, or as turns of a conversation.

Tokens are only added. What the policy drew stays as it was drawn; what an environment says is tokenised once, as what follows.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from prefopt.data import Tokenised
from prefopt.data.encoding import TextEncoder
from prefopt.data.example import Example
from prefopt.data.rendering import begins_answer
from prefopt.data.texts import encode_following
from prefopt.support.errors import PrefoptError
from prefopt.types import Message

Said = str | Sequence[Message]
"""What an environment says: a text, or messages."""

CONTEXT = 40
"""Characters on either side of where two texts part that a message shows."""


HELP = (
    "save the tokenizer with one that keeps its prefix, or give prompts as texts and let the environment speak in tags"
)
"""What to do about a template that does not keep turns."""


class NotKeptError(PrefoptError):
    """A chat template that writes an earlier turn otherwise than it was.

    Attributes:
        texts: what was expected and what was rendered instead, around where they part.
    """

    def __init__(self, message: str, expected: str, rendered: str):
        super().__init__(message)
        self.texts = expected, rendered


class Transcript(Protocol):
    """The tokens of one prompt's episodes."""

    def prompt(self, opening: Said | None, tools: Sequence[Mapping[str, Any]]) -> tuple[int, ...]:
        """Ids of the prompt with what the environment adds to it."""
        ...

    def messages(self, said: Said) -> tuple[Message, ...]:
        """What an environment says as messages; none for an empty text."""
        ...

    def answer(self, past: Sequence[Message], end: str, answer: Sequence[Message]) -> list[int]:
        """Ids of what follows a turn of the policy.

        Args:
            past: all messages after the prompt so far, the policy's turn last.
            end: the special tokens with which the policy ended it, as text.
            answer: of the environment.
        """
        ...


def encodable(text: Any) -> Any:
    """A text, or all texts in lists and mappings, without half characters, which no tokenizer takes; anything else as it is."""
    if isinstance(text, Mapping):
        return {encodable(key): encodable(value) for key, value in text.items()}
    if isinstance(text, list | tuple):
        return [encodable(one) for one in text]
    return text.encode("utf-8", "replace").decode() if isinstance(text, str) else text


def transcript(row: Tokenised, encoder: TextEncoder, name: str) -> Transcript:
    """That of a row: a conversation where its prompt is one.

    Args:
        row: of the data.
        encoder: of the policy's tokenizer.
        name: what messages call the environment.
    """
    return (PlainText if isinstance(row.example.prompt, str) else Conversation)(row, encoder, name)


@dataclass(frozen=True)
class PlainText:
    """A text that goes on: what the environment says is appended as it is."""

    row: Tokenised
    encoder: TextEncoder
    name: str

    def prompt(self, opening: Said | None, tools: Sequence[Mapping[str, Any]]) -> tuple[int, ...]:
        """The row's own ids and those of the opening."""
        if tools:
            raise PrefoptError(
                f"{self.name}: it offers tools, which a chat template writes, and {self.row.where or 'the row'} has a text as its "
                "prompt: give conversations, or describe the tools in the prompt and leave `tools` out"
            )
        said = self.messages(opening or "")
        return (*self.row.prompt_ids, *self.answer((), "", said))

    def messages(self, said: Said) -> tuple[Message, ...]:
        """One message of the environment."""
        if not isinstance(said, str):
            raise PrefoptError(
                f"{self.name}: it answers with messages, which go into a conversation, and {self.row.where or 'the row'} has a "
                "text as its prompt: return a text"
            )
        return ({"role": "environment", "content": encodable(said)},) if said else ()

    def answer(self, past: Sequence[Message], end: str, answer: Sequence[Message]) -> list[int]:
        """The ids of its text."""
        return encode_following(self.encoder.tokenizer, [str(answer[0]["content"])])[0] if answer else []


@dataclass
class Conversation:
    """Turns that a chat template writes: what follows a turn is the difference of two of its renderings."""

    row: Tokenised
    encoder: TextEncoder
    name: str

    def __post_init__(self) -> None:
        if begins_answer(self._turns):
            raise PrefoptError(
                f"{self.name}: the prompt of {self.row.where or 'a row'} ends in the beginning of an answer, and an episode begins "
                "with a turn of its own: leave the last message out"
            )

    def prompt(self, opening: Said | None, tools: Sequence[Mapping[str, Any]]) -> tuple[int, ...]:
        """The row's own ids; where there is an opening, or are tools, those of the conversation with them."""
        said = self.messages(opening or "")
        if not said and not tools:
            return self.row.prompt_ids
        example = self._example(tools)
        self.row = replace(self.row, example=replace(example, prompt=(*self._turns, *said)))
        return tuple(self.encoder.encode([self.rendered((), ask=True)])[0])

    def messages(self, said: Said) -> tuple[Message, ...]:
        """A text is a message of the user's."""
        if not isinstance(said, str):
            return tuple(encodable({**one, "content": one.get("content") or ""}) for one in said)
        return ({"role": "user", "content": encodable(said)},) if said else ()

    def answer(self, past: Sequence[Message], end: str, answer: Sequence[Message]) -> list[int]:
        """The ids of what a template writes behind the policy's turn, up to where the policy writes again.

        Raises:
            NotKeptError: the template writes earlier turns otherwise once there is more, so that the policy would have read
                another text than it does.
        """
        turn = sum(message["role"] == "assistant" for message in past)
        asked = self.rendered(past[:-1], ask=True)
        before = self.rendered(past, ask=False)
        begun = asked + str(past[-1]["content"])
        if not before.startswith(begun):
            raise self._broken(turn, begun, before)
        after = self.rendered((*past, *answer), ask=True)
        if not after.startswith(before):
            raise self._broken(turn, before, after)
        text = after[len(begun) :].removeprefix(end)
        return encode_following(self.encoder.tokenizer, [text], *[end] * bool(end))[0]

    @property
    def _turns(self) -> tuple[Message, ...]:
        prompt = self.row.example.prompt
        assert not isinstance(prompt, str)
        return tuple(prompt)

    def _example(self, tools: Sequence[Mapping[str, Any]]) -> Example:
        example = self.row.example
        return replace(example, columns={**example.columns, "tools": list(tools)}) if tools else example

    def rendered(self, past: Sequence[Message], ask: bool) -> str:
        """The text of the prompt and all messages after it; with `ask`, up to where the policy writes."""
        return self.encoder.renderer(self.row.example, (*self._turns, *past), ask=ask, begun=False)

    def _broken(self, turn: int, expected: str, rendered: str) -> NotKeptError:
        place = next(
            (i for i, (a, b) in enumerate(zip(expected, rendered, strict=False)) if a != b),
            min(len(expected), len(rendered)),
        )
        shown = slice(max(0, place - CONTEXT), place + CONTEXT)
        expected, rendered = expected[shown], rendered[shown]
        return NotKeptError(
            f"{self.name}: the chat template does not keep what the policy wrote in turn {turn}: it was {expected!r} and "
            f"the template then writes {rendered!r}, which is not what the policy read. Templates that drop earlier "
            f"reasoning, trim or date turns cannot hold an episode: {HELP}",
            expected,
            rendered,
        )
