"""What a server's reply says, read from its JSON: the text, how it ended, lists of likeliest tokens, its cost, whose it is."""

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

Tops = list[tuple[str, float]]

ENDED = ("stop", "eos", "eos_token", "stop_sequence", "end_turn", "complete", "completed")
"""`finish_reason` of an answer that came to its end."""
CUT_OFF = ("length", "max_tokens", "max_output_tokens", "model_length")
FILTERED = ("content_filter", "safety", "prohibited_content", "recitation", "blocklist", "refusal", "moderation")
CALLED = ("tool_calls", "function_call", "tool_use")

TOLERANCE = 1e-3
"""By which a log-prob may be above 0, and probabilities together above 1, twentyfold: arithmetic in half precision."""

THOUGHTS = ("reasoning_content", "reasoning", "thinking")
"""Where servers put what was thought, apart from the answer."""


class MalformedError(ValueError):
    """A reply has not the form of OpenAI's; says what."""


class NoAnswerError(Exception):
    """The server has no answer to this question, and may have one to the next.

    Attributes:
        why: too_long or filtered, as in `Answer.missing`.
    """

    def __init__(self, why: str, message: str):
        super().__init__(message)
        self.why = why


def choice_of(reply: Any) -> Mapping[str, Any]:
    """The first choice.

    Raises:
        MalformedError: there is none.
    """
    choices = reply.get("choices") if isinstance(reply, Mapping) else None
    if not isinstance(choices, Sequence) or isinstance(choices, str) or not choices:
        raise MalformedError("a reply without a list of `choices`")
    if not isinstance(choices[0], Mapping):
        raise MalformedError(f"a choice that is {_kind(choices[0])}")
    return choices[0]


def text_of(choice: Mapping[str, Any], chat: bool) -> str:
    """What was written, thinking that the server keeps apart left out; "" for nothing.

    Raises:
        MalformedError: it is no text.
    """
    content = choice.get("text")
    if chat:
        message = choice.get("message")
        if not isinstance(message, Mapping):
            raise MalformedError(f"a `message` that is {_kind(message)}")
        content = message.get("content") or message.get("refusal")
        if isinstance(content, Sequence) and not isinstance(content, str):  # parts, of which some may be thinking
            parts = [
                part for part in content if isinstance(part, Mapping) and part.get("type") in ("text", "output_text")
            ]
            content = "".join(str(part.get("text") or "") for part in parts)
    if content is not None and not isinstance(content, str):
        raise MalformedError(f"a `content` that is {_kind(content)}")
    return content or ""


def has_thoughts(choice: Mapping[str, Any]) -> bool:
    """Whether the server says what the model thought before it answered."""
    message = choice.get("message")
    return isinstance(message, Mapping) and any(message.get(name) for name in THOUGHTS)


def missing_of(choice: Mapping[str, Any]) -> str | None:
    """Why an answer is none, by its `finish_reason`; None where it came to its end, or to `max_tokens`."""
    reason = _reason(choice)
    if reason in (*ENDED, *CUT_OFF):
        return None
    return "filtered" if reason in FILTERED else "called_tools" if reason in CALLED else "unfinished"


def is_cut_off(choice: Mapping[str, Any]) -> bool:
    """Whether it ended at `max_tokens`."""
    return _reason(choice) in CUT_OFF


def tops_of(choice: Mapping[str, Any], chat: bool) -> Tops | None:
    """The likeliest first tokens with their log-probs, [] where there is no first token; None where the server gives no lists.

    Raises:
        MalformedError: they are no log-probs: no numbers, above 0, infinite, or together more than certain.
    """
    logprobs = choice.get("logprobs")
    listed = logprobs.get("content" if chat else "top_logprobs") if isinstance(logprobs, Mapping) else logprobs
    if listed is None:
        return None
    if not isinstance(logprobs, Mapping) or not isinstance(listed, Sequence) or isinstance(listed, str):
        raise MalformedError(f"`logprobs` that are {_kind(logprobs)}")
    if not listed:
        return []
    first = listed[0]
    if not chat:
        pairs = list(first.items()) if isinstance(first, Mapping) else None
    else:
        entries = first.get("top_logprobs") if isinstance(first, Mapping) else None
        if entries is not None and not all(isinstance(entry, Mapping) for entry in entries):
            raise MalformedError("`top_logprobs` that are no objects")
        pairs = None if entries is None else [(entry.get("token"), entry.get("logprob")) for entry in entries]
    if pairs is None:
        raise MalformedError("`logprobs` without lists of the likeliest tokens (`top_logprobs`)")
    return _checked(pairs)


def usage_of(reply: Mapping[str, Any]) -> tuple[int, int]:
    """Tokens read and written; 0 for what the server does not count, or counts in something else than numbers."""
    usage = reply.get("usage")
    counts: Mapping[str, Any] = usage if isinstance(usage, Mapping) else {}
    return _count(counts.get("prompt_tokens")), _count(counts.get("completion_tokens"))


def served_of(reply: Mapping[str, Any]) -> str:
    """What it says of the model that answered, as JSON."""
    said = {name: reply.get(name) for name in ("model", "system_fingerprint")}
    return json.dumps({name: str(value) for name, value in said.items() if value is not None}, sort_keys=True)


def listing_of(reply: Any, model: str) -> str:
    """What the list of models says about one, as JSON: all but when the list was made; "" where it says nothing."""
    data = reply.get("data") if isinstance(reply, Mapping) else None
    entries = [entry for entry in data if isinstance(entry, Mapping)] if isinstance(data, list) else []
    named = [entry for entry in entries if entry.get("id") == model] or (entries if len(entries) == 1 else [])
    if not named:
        return ""
    moving = ("created", "permission", "status")
    return json.dumps({k: v for k, v in named[0].items() if k not in moving}, sort_keys=True, default=str)


def _count(number: Any) -> int:
    return int(number) if type(number) in (int, float) and math.isfinite(number) and number >= 0 else 0


def _checked(pairs: Sequence[tuple[Any, Any]]) -> Tops:
    for token, logp in pairs:
        if not isinstance(token, str):
            raise MalformedError(f"a token that is {_kind(token)} among its log-probs")
        if not isinstance(logp, int | float) or isinstance(logp, bool):
            raise MalformedError(f"log-probs that are no numbers: {token!r} has {_kind(logp)}")
        if logp > TOLERANCE:
            raise MalformedError(f"log-probs that are none: {token!r} has {logp:g}, and no log-prob is above 0")
    if sum(math.exp(logp) for _, logp in pairs if logp == logp) > 1 + 20 * TOLERANCE:
        raise MalformedError("log-probs that are none: together its tokens are more than certain")
    return [(token, min(float(logp), 0.0)) for token, logp in pairs]


def _reason(choice: Mapping[str, Any]) -> str:
    return str(choice.get("finish_reason") or "").lower()


def _kind(value: Any) -> str:
    return "null" if value is None else f"a {type(value).__name__}"
