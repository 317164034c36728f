"""Calls of tools in what a policy wrote: by the tokenizer's own parser, or in the formats that most models share."""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

LONGEST_REASON = 200
"""Characters of a parser's message that a policy gets to read."""


class Call(NamedTuple):
    """A tool that the policy wants called.

    Attributes:
        name: of the tool; there may be none of that name.
        arguments: as they were written, by name; not yet held against what the tool takes.
    """

    name: str
    arguments: Mapping[str, Any]


class Unparsed(NamedTuple):
    """Something that was meant as a call and cannot be read as one.

    Attributes:
        reason: what is wrong with it, for the policy to read.
    """

    reason: str


_OBJECT = 'a call is a JSON object {"name": …, "arguments": {…}}'

_THOUGHT = re.compile(r"\A(?:(?!<think>).)*?</think>|<think>.*?(?:</think>|\Z)", re.DOTALL)
"""What a policy thinks: in tags, of which the first may belong to the prompt, as many templates have it."""

_TAGGED = re.compile(r"<tool_call>(.*?)(?:</tool_call>|\Z)|(<function=.*?)(?:</function>|\Z)", re.DOTALL)
"""The last tag may be missing: where it is what ended the turn, it is no part of the text."""

_FUNCTION = re.compile(r"<function=([^>\s]+)>(.*?)(?:</function>|\Z)", re.DOTALL)
_PARAMETER = re.compile(r"<parameter=([^>\s]+)>\n?(.*?)\n?(?:</parameter>|(?=<parameter=)|\Z)", re.DOTALL)
_BARE = re.compile(r"\s*(?:<\|python_tag\|>|\[TOOL_CALLS\])?\s*([\[{].*[\]}])\s*", re.DOTALL)


def calls_in(text: str, tokenizer: Any = None, tools: Sequence[Any] = ()) -> list[Call | Unparsed]:
    """The calls of a turn in their order; none where it answers.

    A tokenizer with a `response_template` (transformers ≥ 5.15) says itself how its model calls. Otherwise a call is

    - in tags: `<tool_call>{"name": …, "arguments": {…}}</tool_call>` (Hermes, Qwen);
    - `<function=NAME>{…}</function>` (Llama 3.1), or with `<parameter=KEY>VALUE</parameter>` for each argument, whose values are
      texts (Qwen Coder), in `<tool_call>` or without;
    - the whole turn, a JSON object or a list of them, with `name` and `arguments`, or `parameters` (Llama 3, Mistral).

    Calls in `<think>` are thoughts.

    Args:
        text: the turn with its special tokens, up to its end.
        tokenizer: the policy's.
        tools: schemas, by which a tokenizer's parser brings arguments that are texts to their types.
    """
    spoken = _THOUGHT.sub("", text)
    if getattr(tokenizer, "response_template", None) is not None:
        return _by_template(spoken, tokenizer, tools)
    tagged = [_from_tag(match) for match in _TAGGED.finditer(spoken)]
    return tagged or _bare(spoken)


def _by_template(text: str, tokenizer: Any, tools: Sequence[Any]) -> list[Call | Unparsed]:
    """What the tokenizer's parser reads; some templates need the token that ended the turn, which is no part of the text."""
    reasons = []
    for ended in (text, text + (tokenizer.eos_token or "")):
        try:
            message = tokenizer.parse_response(ended, prefix="", tools=list(tools))
            return [_from_json(call) for call in message.get("tool_calls") or []]
        except (ValueError, KeyError, TypeError) as error:
            reasons.append(str(error))
    return [Unparsed(" ".join(reasons[0].split())[:LONGEST_REASON])]


def _from_tag(match: re.Match[str]) -> Call | Unparsed:
    content = (match[2] if match[1] is None else match[1]).strip()
    function = _FUNCTION.match(content)
    if function is None:
        return _from_text(content)
    name, body = function[1], function[2].strip()
    if body.startswith("{"):
        return _from_text(body, name)
    arguments = {parameter[1]: parameter[2] for parameter in _PARAMETER.finditer(body)}
    if body and not arguments:
        return Unparsed(f"the arguments of {name} are no JSON object, and in no <parameter=NAME> tags")
    return Call(name, arguments)


def _from_text(text: str, name: str | None = None) -> Call | Unparsed:
    """A call, or of a name its arguments, in JSON."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        return Unparsed(f"{error} in {text[:LONGEST_REASON]!r}; {_OBJECT}")
    return _from_json(value if name is None else {"name": name, "arguments": value})


def _from_json(value: Any) -> Call | Unparsed:
    function = value.get("function", value) if isinstance(value, Mapping) else value
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        return Unparsed(f"it has no name; {_OBJECT}")
    arguments = function.get("arguments", function.get("parameters", {}))
    if isinstance(arguments, str):  # as servers of the OpenAI kind write them
        return _from_text(arguments, function["name"])
    if not isinstance(arguments, Mapping):
        return Unparsed(f"the arguments of {function['name']} are no object; {_OBJECT}")
    return Call(function["name"], arguments)


def _bare(text: str) -> list[Call | Unparsed]:
    """A turn that is nothing but JSON of calls; any other JSON is an answer."""
    match = _BARE.fullmatch(text)
    try:
        values = json.loads(match[1]) if match else []
    except (ValueError, RecursionError):
        return []
    values = values if isinstance(values, Sequence) else [values]
    return [_from_json(value) for value in values] if all(map(_is_call, values)) else []


def _is_call(value: Any) -> bool:
    if not isinstance(value, Mapping):
        return False
    function = value.get("function", value)
    return isinstance(function, Mapping) and "name" in function and bool({"arguments", "parameters"} & set(function))
