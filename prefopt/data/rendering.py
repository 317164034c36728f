"""Conversations as a chat template writes them, and where in its text the words of each turn are.

A template may write an earlier turn otherwise than the last one, trim it, drop its reasoning, or not write it at all. So that no
word is lost without anybody knowing, the whole conversation is rendered a second time with a mark before each word; where the marks
come out says where the words are, and which have gone.
"""

import itertools
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from prefopt.data.example import Completion, Example
from prefopt.support.errors import PrefoptError
from prefopt.types import Message

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Turns = tuple[Message, ...]

PLANES = (range(0xF0000, 0xFFFFE), range(0x100000, 0x10FFFE))
"""Characters for private use, each of which marks one word."""

MARK = re.compile("[\U000f0000-\U000ffffd\U00100000-\U0010fffd]")
WORD = re.compile(r"<[^<>\s]*>|[^\s<]+|<")
"""A tag, such as <think>, which templates read and write by themselves; or text without blanks."""

REASONING = ("reasoning_content", "reasoning", "thinking")
"""The keys of a message under which transformers looks for its reasoning."""


class Word(NamedTuple):
    """A word of a message.

    Attributes:
        turn: number of the message.
        kind: "words", "reasoning" or "tool calls".
        text: as it was given.
    """

    turn: int
    kind: str
    text: str


class Place(NamedTuple):
    """Where a word is.

    Attributes:
        turn: number of the message that it is from.
        start: of it in the text.
        end: behind it.
    """

    turn: int
    start: int
    end: int


@dataclass(frozen=True)
class Places:
    """Where the words of a conversation are in the text of a chat template.

    Attributes:
        found: for each turn, the first and the last place of its words; turns of which there is none are missing.
        lost: for each turn, the kinds of its words that are not all there, with the first such word.
        given: for each turn, the kinds that it has.
        words: the place of each word that is there, by its number in the conversation.
    """

    found: Mapping[int, tuple[int, int]]
    lost: Mapping[int, Mapping[str, str]]
    given: Mapping[int, set[str]]
    words: Mapping[int, Place]


def _as_text_episode(example: Example) -> str:
    """What to do where messages behind a text were meant as an episode without a template; nothing where none could be."""
    if not example.prompt or all(isinstance(one, str) for one in example.completions):
        return ""
    return (
        '. An episode in a plain text is known by a message of the environment, {"role": "environment", "content": ""} '
        "where it says nothing, behind a prompt that is text"
    )


@dataclass(frozen=True)
class Renderer:
    """A tokenizer's chat template.

    Attributes:
        tokenizer: has one, or refuses conversations.
        parts: whether the template reads content in parts only, as those of models with images do.
    """

    tokenizer: Any
    parts: bool = False

    @classmethod
    def of(cls, tokenizer: "PreTrainedTokenizerBase") -> Self:
        """Finds out how the template wants content."""
        if not tokenizer.chat_template:
            return cls(tokenizer)
        for parts in (False, True):
            try:
                probe = cls(tokenizer, parts)._written([{"role": "user", "content": "probe"}], ask=True)
            except Exception:  # templates raise exceptions of many kinds
                continue
            if "probe" in probe and "'text'" not in probe:  # else it is Python's way to write a list
                return cls(tokenizer, parts)
        return cls(tokenizer)

    def __call__(self, example: Example, turns: Sequence[Message], ask: bool, begun: bool = True) -> str:
        """The chat template's text for these turns; with `ask`, up to where the assistant writes.

        A turn of the assistant's that is the last one is gone on with: it is the beginning of the answer. Unless `begun` is False:
        then it is whole, and the assistant writes another.
        """
        if not self.tokenizer.chat_template:
            raise PrefoptError(
                f"{example.where}: a conversation, but the tokenizer has no chat template: name one that has in policy.tokenizer "
                "(an instruct model's, a folder with this tokenizer and a chat_template.jinja), or give the prompts as plain text"
                f"{_as_text_episode(example)}"
            )
        settings = {"tools": example.columns.get("tools"), **(example.columns.get("chat_template_kwargs") or {})}
        try:
            return self._written(turns, ask, begun, **settings)
        except Exception as error:  # templates raise exceptions of many kinds
            raise PrefoptError(f"{example.where}: the chat template refuses this conversation: {error}") from error

    def _written(self, turns: Sequence[Message], ask: bool, begun: bool = True, **settings: Any) -> str:
        goes_on = ask and begun and begins_answer(turns)
        if self.parts:
            turns = [{**turn, "content": [{"type": "text", "text": turn.get("content") or ""}]} for turn in turns]
        text = self.tokenizer.apply_chat_template(
            [dict(turn) for turn in turns],
            tokenize=False,
            add_generation_prompt=ask and not goes_on,
            continue_final_message=goes_on,
            **settings,
        )
        return str(text)

    def places(self, example: Example, turns: Turns, text: str, ask: bool = False) -> Places:
        """Where the words of these turns are in `text`, which is their rendering or its beginning."""
        leaves = _leaves(turns)
        words = [Word(turn, kind, word) for turn, kind, leaf in leaves for word in _words(leaf)]
        try:
            marked = self(example, _marked(turns), ask)
        except PrefoptError:
            marked = ""
        if MARK.sub("", marked).startswith(text) and len(words) <= sum(map(len, PLANES)):
            return _places(words, _by_marks(words, marked))
        return _places(words, _by_search(leaves, text))


def begins_answer(turns: Sequence[Message]) -> bool:
    """Whether the last turn is the beginning of an answer that is to be gone on with."""
    last = turns[-1]
    return last["role"] == "assistant" and isinstance(last.get("content"), str) and not last.get("tool_calls")


def joined(prompt: Sequence[Message], completion: Completion) -> Turns:
    """Prompt and completion as one conversation; an answer that the prompt begins is one turn with its rest."""
    assert not isinstance(completion, str)
    if not completion or not begins_answer(prompt) or completion[0]["role"] != "assistant":
        return (*prompt, *completion)
    rest = completion[0].get("content") or ""  # there is none where the rest is tool calls
    whole = {**prompt[-1], **completion[0], "content": prompt[-1]["content"] + rest}
    return (*prompt[:-1], whole, *completion[1:])


def _leaves(turns: Turns) -> list[tuple[int, str, str]]:
    """The texts of each turn that a template should write: its number, what kind of text, and the text."""
    leaves: list[tuple[int, str, str]] = []

    def kept(turn: int, kind: str, text: str) -> str:
        leaves.append((turn, kind, text))
        return text

    _changed(turns, kept)
    return leaves


def _marked(turns: Turns) -> Turns:
    """The same turns with a mark before each word, in the order of `_leaves`."""
    marks = itertools.cycle(chr(code) for plane in PLANES for code in plane)

    def marked(_turn: int, _kind: str, text: str) -> str:
        tags_too = all(map(_is_tag, WORD.findall(text)))
        return WORD.sub(lambda word: word[0] if _is_tag(word[0]) and not tags_too else next(marks) + word[0], text)

    return _changed(turns, marked)


def _changed(turns: Turns, change: Callable[[int, str, str], str]) -> Turns:
    """The turns with every text that a template should write changed: by its turn, its kind and what it is."""
    new: list[Message] = []
    for number, turn in enumerate(turns):
        message = dict(turn)
        for key in REASONING:
            if isinstance(turn.get(key), str):
                message[key] = change(number, "reasoning", turn[key])
        content = turn.get("content")
        if isinstance(content, str):
            thought, end, answer = content.rpartition("</think>") if turn["role"] == "assistant" else ("", "", content)
            thought = change(number, "reasoning", thought) if end else thought
            message["content"] = thought + end + change(number, "words", answer)
        if turn.get("tool_calls"):
            calling = partial(change, number, "tool calls")
            message["tool_calls"] = [_in_call(call, calling) for call in turn["tool_calls"]]
        new.append(message)
    return tuple(new)


def _in_call(value: Any, change: Callable[[str], str], outermost: bool = True) -> Any:
    """A tool call with its texts changed, but for those that say which call it is."""
    if isinstance(value, Mapping):
        return {
            key: item if outermost and key in ("type", "id") else _in_call(item, change, False)
            for key, item in value.items()
        }
    if isinstance(value, list):
        return [_in_call(item, change, False) for item in value]
    return change(value) if isinstance(value, str) else value


def _words(text: str) -> list[str]:
    """Its words, tags left out unless there is nothing else."""
    every = WORD.findall(text)
    return [word for word in every if not _is_tag(word)] or every


def _is_tag(word: str) -> bool:
    return len(word) > 1 and word[0] == "<" and word[-1] == ">"


def _by_marks(words: Sequence[Word], marked: str) -> list[int | None]:
    """The place of each word in the text without marks; None where its mark has gone, or another word stands behind it."""
    places: list[int | None] = [None] * len(words)
    for count, mark in enumerate(MARK.finditer(marked)):
        code, size = ord(mark[0]), len(PLANES[0])
        number = code - PLANES[0][0] if code in PLANES[0] else size + code - PLANES[1][0]
        word = words[number].text
        if places[number] is None and (
            marked.startswith(word, mark.end())
            or marked.startswith(json.dumps(word, ensure_ascii=False)[1:-1], mark.end())
        ):
            places[number] = mark.start() - count
    return places


def _by_search(leaves: Sequence[tuple[int, str, str]], text: str) -> list[int | None]:
    """The same where a template does not bear marks: each text, stripped, is looked for behind the one before."""
    places: list[int | None] = []
    cursor = 0
    for _, _, leaf in leaves:
        at = text.find(leaf.strip(), cursor)
        at = text.find(leaf.strip()) if at < 0 else at
        end = at
        for word in _words(leaf):
            place = text.find(word, end) if at >= 0 else None
            places.append(place)
            end = end if place is None else place + len(word)
        cursor = max(cursor, end)
    return places


def _places(words: Sequence[Word], places: Sequence[int | None]) -> Places:
    found: dict[int, tuple[int, int]] = {}
    lost: dict[int, dict[str, str]] = {}
    given: dict[int, set[str]] = {}
    there: dict[int, Place] = {}
    for number, (word, place) in enumerate(zip(words, places, strict=True)):
        given.setdefault(word.turn, set()).add(word.kind)
        if place is None:
            lost.setdefault(word.turn, {}).setdefault(word.kind, word.text)
            continue
        first, last = found.get(word.turn, (place, place))
        there[number] = Place(word.turn, place, place + len(word.text))
        found[word.turn] = min(first, place), max(last, place + len(word.text))
    return Places(found, lost, given, there)
