"""The turns of a conversation, and what a chat template takes beside them, as plain data."""

import json
from collections.abc import Mapping
from typing import Any

from prefopt.data.example import Completion
from prefopt.data.values import fail, list_of, plain, read_json, shown
from prefopt.types import Message

TEXT_PARTS = ("text", "input_text", "output_text")
"""Types of a content's parts that are text."""


def turns_of(value: Any, name: str, where: str) -> Completion:
    """Text as it is; a list of messages as a tuple of plain dicts whose content is text.

    Fields with None, which Arrow adds, are left out at every depth; content in parts is joined where all of them are text.

    Raises:
        PrefoptError: something that is no message, or content that is no text.
    """
    if isinstance(value, str):
        return str(value)
    turns = list_of(value, name, where, "text or a list of messages")
    if not turns:
        fail(where, f"{name!r} is an empty list; it needs at least one message")
    return tuple(_turn(turn, name, where) for turn in turns)


def _turn(turn: Any, name: str, where: str) -> Message:
    if not isinstance(turn, Mapping) or not isinstance(turn.get("role"), str):
        keys = f" Its keys are {sorted(map(str, turn))}." if isinstance(turn, Mapping) else ""
        if isinstance(turn, Mapping) and {"from", "value"} <= turn.keys():
            keys += (
                " Turns with 'from' and 'value' (ShareGPT) can be renamed: `source: {adapt: file.py:function}` names a function "
                "that returns each row as it should be."
            )
        fail(where, f"{name!r} must hold messages with 'role' and 'content', not {shown(turn)}.{keys}")
    message = {key: item for key, item in plain(turn).items() if item is not None}
    if isinstance(message.get("tool_calls"), str):
        message["tool_calls"] = read_json(message["tool_calls"], f"{where}: 'tool_calls' of {name!r}")
    calls = message.get("tool_calls")
    if calls is not None and not (isinstance(calls, list) and all(isinstance(call, dict) for call in calls)):
        fail(where, f"{name!r} has a message whose 'tool_calls' are {shown(calls)}; they must be a list of objects")
    if "content" not in message and not calls:
        fail(where, f"{name!r} has a message without 'content'")
    if calls is not None:
        message["tool_calls"] = [_call(call) for call in calls]
    return {**message, "content": _text(message.get("content"), name, where)}


def _call(call: dict[str, Any]) -> dict[str, Any]:
    """A tool call whose arguments are an object, as chat templates want them: OpenAI has them as JSON text.

    Text that is no JSON object stays: it is what was written.
    """
    function = call.get("function")
    if not isinstance(function, dict) or not isinstance(function.get("arguments"), str):
        return call
    try:
        decoded = json.loads(function["arguments"])
    except ValueError:
        return call
    return {**call, "function": {**function, "arguments": decoded}} if isinstance(decoded, dict) else call


def _text(content: Any, name: str, where: str) -> str | None:
    """The content of a message; of several parts, all that they say."""
    if content is None or isinstance(content, str):
        return content
    if not isinstance(content, list):
        fail(where, f"{name!r} has a message whose content is {shown(content)}; it must be text")
    texts = []
    for part in content:
        if isinstance(part, str):
            texts.append(part)
        elif isinstance(part, dict) and part.get("type") in TEXT_PARTS and isinstance(part.get("text"), str):
            texts.append(part["text"])
        else:
            kind = f"of type {part['type']!r}" if isinstance(part, dict) and "type" in part else shown(part)
            fail(
                where,
                f"{name!r} has a message with a part {kind}; only text can be learnt from. Leave such rows or parts out, e.g. by "
                "`source: {adapt: file.py:function}`",
            )
    return "".join(texts)


def template_columns(columns: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The columns `tools` and `chat_template_kwargs` as a chat template takes them; either may be JSON text.

    Raises:
        PrefoptError: they hold something else.
    """
    taken: dict[str, Any] = {}
    if columns.get("tools") is not None:
        tools = plain(_decoded(columns["tools"], "tools", where))
        tools = [plain(_decoded(tool, "tools", where)) for tool in tools] if isinstance(tools, list) else tools
        if not isinstance(tools, list) or not all(isinstance(tool, dict) or callable(tool) for tool in tools):
            fail(
                where,
                f"'tools' must be a list of JSON schemas, or JSON text of one, not {shown(columns['tools'])}. If the column is "
                "something else, rename it, e.g. by `source: {adapt: file.py:function}`",
            )
        taken["tools"] = tools
    if columns.get("chat_template_kwargs") is not None:
        settings = plain(_decoded(columns["chat_template_kwargs"], "chat_template_kwargs", where))
        if not isinstance(settings, dict):
            fail(
                where,
                "'chat_template_kwargs' must be an object such as {\"enable_thinking\": false}, not "
                + shown(columns["chat_template_kwargs"]),
            )
        taken["chat_template_kwargs"] = settings
    return taken


def _decoded(value: Any, name: str, where: str) -> Any:
    return read_json(value, f"{where}: {name!r}") if isinstance(value, str) else value
