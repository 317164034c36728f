"""Other people's text inside a judge's prompt: it may say what it likes, and cannot end the place that it was given."""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from prefopt.types import Completion, Prompt

CONTROL = re.compile(
    r"<\|[^<>|\s]{1,80}\|>"  # <|im_start|>, <|eot_id|>
    r"|<｜[^<>｜]{1,80}｜>"
    r"|</?(?:s|bos|eos|pad|unk|cls|sep|mask|think|tool_call|tool_response)>"
    r"|<(?:start|end)_of_(?:turn|image|text)>"
    r"|\[/?(?:INST|SYSTEM_PROMPT|AVAILABLE_TOOLS|TOOL_CALLS|TOOL_RESULTS|TOOL_CONTENT|CLS|SEP|PAD|UNK|MASK|THINK)\]"
    r"|<</?SYS>>",
    re.IGNORECASE,
)
"""The forms that control tokens of chat models have. A local model's own are broken up as well, whatever their form."""

BREAKS = re.compile(r"[ \t]*[\n\r\v\f\x1c-\x1e\x85\u2028\u2029]+[ \t]*")

LOOKALIKES = str.maketrans(
    {
        **dict.fromkeys("＜‹〈⟨❮﹤˂", "<"),
        **dict.fromkeys("＞›〉⟩❯﹥˃", ">"),
        **dict.fromkeys("｜¦∣ǀ❘│￨", "|"),
        **dict.fromkeys("［〔【﹝", "["),
        **dict.fromkeys("］〕】﹞", "]"),
        **dict.fromkeys("／⁄∕", "/"),
        **dict.fromkeys("＿", "_"),
        **{chr(0xFF21 + i): chr(0x41 + i) for i in range(26)},
        **{chr(0xFF41 + i): chr(0x61 + i) for i in range(26)},
    }
)
"""What a tokenizer that normalises may read as the character of a control token."""

DOUBLE = '"“”„‟«»″‶〝〞〟＂❝❞ˮ״＂⹂「」『』｢｣﹁﹂﹃﹄`´'
SINGLE = "'‘’‚‛‹›′‵＇❛❜ʼʻ՚"
BRACKETS = {
    "(": ")",
    "[": "]",
    "{": "}",
    "<": ">",
    "（": "）",
    "［": "］",
    "｛": "｝",
    "＜": "＞",
    "【": "】",
    "〈": "〉",
    "《": "》",
    "⟨": "⟩",
}
OTHERS = {")": "[]", "]": "()", "}": "()", ">": "()"}
"""Brackets that stand in place of those that close a text, by the plain form of these."""

STOPS = ".,;:!?…。，；：！？"
"""Marks of punctuation, which end a sentence and close nothing."""

INVISIBLE = re.compile(
    "[\u00ad\u061c\u200b\u200e\u200f\u202a-\u202e\u2060-\u2069\ufeff\ufff9-\ufffb\U000e0000-\U000e007f]"
)
UNPRINTABLE = re.compile("[\x00-\x08\x0e-\x1b\x1f\x7f-\x84\x86-\x9f]")
"""Control characters beside tabulators and line breaks: escapes that a terminal obeys."""


def whole(text: str) -> str:
    """The text as it can be written in UTF-8: halves of surrogate pairs, which samplers can produce, become U+FFFD."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def visible(text: str) -> tuple[str, int]:
    """The text without characters that nobody sees, control characters as their pictures (␛); and how many that were."""
    text, invisible = INVISIBLE.subn("", text)
    text, unprintable = UNPRINTABLE.subn(lambda match: _picture(ord(match[0])), text)
    return text, invisible + unprintable


def _picture(code: int) -> str:
    return chr(0x2400 + code) if code < 0x20 else "␡" if code == 0x7F else "\ufffd"


def broken(text: str, mark: re.Pattern[str] = CONTROL) -> tuple[str, int]:
    """The text with a space inside whatever matches, or looks as if it did, until nothing does; and how often that was."""
    count = 0
    while True:
        found = list(mark.finditer(text.translate(LOOKALIKES))) or list(mark.finditer(text))
        for match in reversed(found):
            text = f"{text[: match.start() + 1]} {text[match.start() + 1 :]}"
        count += len(found)
        if not found:
            return text, count


def fence(texts: Sequence[str]) -> str:
    """Backticks, one more than these texts have in a row anywhere and at least three: none of them can close the fence.

    It depends on the texts alone, so the same question is always asked in the same words. The rule is CommonMark's.
    """
    longest = max((len(run) for text in texts for run in re.findall("`+", text)), default=0)
    return "`" * max(3, longest + 1)


def on_its_line(text: str, closer: str) -> tuple[str, int]:
    """The text without line breaks, and without what closes it on its line in the rubric; how often that was there.

    Args:
        text: any.
        closer: what follows. A quotation mark or a bracket at its beginning becomes another one in the text, whatever follows it;
            of a longer mark (`=>`, `</answer>`), and of all that follows, every occurrence gets a space inside; another single
            character (`|`) becomes a space. A full stop and its like close nothing.
    """
    text = BREAKS.sub(" ", text)
    text, count = _without(text, closer)
    mark = re.match(r"[^\w\s]\S*|[A-Z][A-Z_]+\b", closer)
    for longer in (mark[0] if mark else "", closer):
        longer = longer.strip(STOPS) if len(longer.strip(STOPS)) > 1 else ""
        if longer:
            text, times = broken(text, re.compile(re.escape(longer), re.IGNORECASE))
            count += times
    return text, count


def _without(text: str, closer: str) -> tuple[str, int]:
    """The text without the single character that closes it."""
    first = closer[:1]
    plain = first.translate(LOOKALIKES) if first not in DOUBLE + SINGLE else first
    if first and first in DOUBLE:
        return _replaced(text, DOUBLE, "'")
    if first and first in SINGLE:  # an apostrophe within a word closes nothing
        return re.subn(rf"(?<!\w)[{SINGLE}]|[{SINGLE}](?!\w)", '"', text)
    for opening, closing in BRACKETS.items():
        if first == closing:
            other = OTHERS.get(plain, "()")
            alike = [
                c
                for pair in BRACKETS.items()
                for c in pair
                if c.translate(LOOKALIKES) in (plain, opening.translate(LOOKALIKES))
            ]
            table = {ord(c): other[c in BRACKETS.values()] for c in {opening, closing, *alike}}
            return text.translate(table), sum(ord(c) in table for c in text)
    alone = first and not first.isalnum() and first not in STOPS and (len(closer) < 2 or closer[1].isspace())
    if alone:
        return (
            _replaced(text, first, " ")
            if first in "|¦~^#*"
            else re.subn(rf"(?:(?<=\s)|^){re.escape(first)}(?=\s|$)", "", text)
        )
    return text, 0


def _replaced(text: str, marks: str, by: str) -> tuple[str, int]:
    table = dict.fromkeys(map(ord, marks), by)
    return text.translate(table), sum(ord(c) in table for c in text)


def conversation(prompt: Prompt) -> str:
    """A prompt as a judge reads it: plain text and a single user's turn as they are, more turns under their roles.

    Lines after the first of a turn are indented, so that no turn can contain another's beginning.
    """
    if isinstance(prompt, str):
        return prompt
    if len(prompt) == 1 and prompt[0].get("role") == "user":
        return _content(prompt[0])
    return "\n".join(
        f"{BREAKS.sub(' ', str(turn.get('role', '?')))}: " + BREAKS.sub("\n  ", _content(turn)) for turn in prompt
    )


def transcripts(completions: Sequence[Sequence[Completion]]) -> list[list[str]]:
    """Completions as a judge reads them: texts as they are, several turns as a `conversation`."""
    return [[one if isinstance(one, str) else conversation(one) for one in row] for row in completions]


def shown(value: Any) -> str:
    """A column of a row as text."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def _content(turn: Mapping[str, Any]) -> str:
    content = turn.get("content") or ""
    if not isinstance(content, str):  # parts: text, and perhaps images, of which a judge of texts sees the kind alone
        content = "\n".join(str(part.get("text", f"[{part.get('type')}]")) for part in content)
    calls = turn.get("tool_calls")
    return "\n".join(filter(None, [content, shown(calls) if calls else ""]))
