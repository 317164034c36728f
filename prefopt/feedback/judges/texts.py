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
    r"|\[/?(?:INST|SYSTEM_PROMPT|AVAILABLE_TOOLS|TOOL_CALLS|TOOL_RESULTS|TOOL_CONTENT|CLS|SEP|PAD|UNK|MASK)\]"
    r"|<</?SYS>>",
    re.IGNORECASE,
)
"""The forms that control tokens of chat models have. A local model's own are broken up as well, whatever their form."""

BREAKS = re.compile(r"[ \t]*[\n\r\v\f\x1c-\x1e\x85\u2028\u2029]+[ \t]*")
QUOTES = {'"': "'", "”": "'", "»": "'", "`": "'"}


def whole(text: str) -> str:
    """The text as it can be written in UTF-8: halves of surrogate pairs, which samplers can produce, become U+FFFD."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def broken(text: str, mark: re.Pattern[str] = CONTROL) -> tuple[str, int]:
    """The text with a space inside whatever matches, until nothing does; and how often that was."""
    count = 0
    while True:
        text, times = mark.subn(lambda match: f"{match[0][0]} {match[0][1:]}", text)
        count += times
        if not times:
            return text, count


def fence(texts: Sequence[str]) -> str:
    """Backticks, one more than these texts have in a row anywhere and at least three: none of them can close the fence.

    It depends on the texts alone, so the same question is always asked in the same words. The rule is CommonMark's.
    """
    longest = max((len(run) for text in texts for run in re.findall("`+", text)), default=0)
    return "`" * max(3, longest + 1)


def on_its_line(text: str, closer: str) -> tuple[str, int]:
    """The text without line breaks, and without what follows it on its line in the rubric; how often that was there.

    Args:
        text: any.
        closer: what follows. Where it begins with a quotation mark, that becomes another one in the text; a longer mark gets a
            space inside; and a single character, a full stop perhaps, closes nothing.
    """
    text = BREAKS.sub(" ", text)
    if (quote := closer[:1]) in QUOTES:
        return text.replace(quote, QUOTES[quote]), text.count(quote)
    if len(closer) < 2 or closer[1].isspace():
        return text, 0
    return broken(text, re.compile(re.escape(closer)))


def conversation(prompt: Prompt) -> str:
    """A prompt as a judge reads it: plain text and a single user's turn as they are, more turns under their roles.

    Lines after the first of a turn are indented, so that no turn can contain another's beginning.
    """
    if isinstance(prompt, str):
        return prompt
    if len(prompt) == 1 and prompt[0].get("role") == "user":
        return _content(prompt[0])
    return "\n".join(f"{turn.get('role', '?')}: " + BREAKS.sub("\n  ", _content(turn)) for turn in prompt)


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
