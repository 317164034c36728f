"""Calls of tools in what a policy wrote, in the formats of the field and by tokenizers' own parsers."""

import re
from typing import Any

import pytest
from _tiny import tiny_model
from transformers import AutoTokenizer

from prefopt.environments.calls import Call, Unparsed, calls_in

ADD = Call("add", {"a": 1, "b": 2})
JSON = '{"name": "add", "arguments": {"a": 1, "b": 2}}'


@pytest.mark.parametrize(
    "text",
    [
        f"<tool_call>{JSON}</tool_call>",
        f"I add.\n<tool_call>\n{JSON}\n</tool_call>\n",
        f"<tool_call>\n{JSON}\n",  # the closing tag ended the turn
        '<function=add>{"a": 1, "b": 2}</function>',
        '<function=add>{"a": 1, "b": 2}',
        f"<think>or {JSON}?</think>{JSON}",
        f"<tool_call>no</tool_call> would be wrong</think>\n\n<tool_call>{JSON}</tool_call>",  # opened in the prompt
        JSON,
        f"[{JSON}]",
        f"<|python_tag|>{JSON}",
        f"[TOOL_CALLS][{JSON}]",
        '{"name": "add", "parameters": {"a": 1, "b": 2}}',
        '{"type": "function", "function": {"name": "add", "arguments": "{\\"a\\": 1, \\"b\\": 2}"}}',
    ],
)
def test_a_call_is_read_in_every_format(text: str) -> None:
    assert calls_in(text) == [ADD]


def test_values_in_tags_are_texts() -> None:
    coder = "<function=add>\n<parameter=a>\n1\n</parameter>\n<parameter=b>\n two\nlines \n</parameter>\n</function>"
    wanted = [Call("add", {"a": "1", "b": " two\nlines "})]
    assert calls_in(coder) == calls_in(f"<tool_call>\n{coder}\n</tool_call>") == wanted
    assert calls_in("<function=now></function>") == [Call("now", {})]


def test_several_calls_keep_their_order() -> None:
    other = '<tool_call>{"name": "now"}</tool_call>'
    assert calls_in(f"{other} and <tool_call>{JSON}</tool_call>") == [Call("now", {}), ADD]
    assert calls_in(f'[{JSON}, {{"name": "now", "arguments": {{}}}}]') == [ADD, Call("now", {})]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "The answer is 3.",
        '{"name": "Bob", "age": 3}',
        '{"answer": 3}',
        "[1, 2]",
        "{not JSON}",
        f"<think>{JSON}</think>3",
        f"<think><tool_call>{JSON}</tool_call>",
        f"it is {JSON}",
    ],
)
def test_what_is_no_call_is_an_answer(text: str) -> None:
    assert calls_in(text) == []


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("<tool_call>add 1 and 2</tool_call>", "Expecting value.* in 'add 1 and 2'; a call is a JSON object"),
        ('<tool_call>{"arguments": {}}</tool_call>', "it has no name"),
        ("<tool_call>[1]</tool_call>", "it has no name"),
        ('<tool_call>{"name": "add", "arguments": [1]}</tool_call>', "the arguments of add are no object"),
        ('<tool_call>{"name": "add", "arguments": "a=1"}</tool_call>', "Expecting value"),
        ("<function=add>1, 2</function>", "the arguments of add are no JSON object, and in no <parameter=NAME> tags"),
        ("<function=add>{1, 2}</function>", "Expecting property name"),
        ("<tool_call></tool_call>", "Expecting value"),
        (f"<tool_call>{'[' * 100_000}</tool_call>", "."),
    ],
)
def test_what_was_meant_as_a_call_says_why_it_is_none(text: str, reason: str) -> None:
    (call,) = calls_in(text)
    assert isinstance(call, Unparsed)
    assert re.search(reason, call.reason) and len(call.reason) < 400


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: Any) -> Any:
    return AutoTokenizer.from_pretrained(tiny_model(tmp_path_factory.mktemp("lm")))


def own_parser(tokenizer: Any, template: str) -> Any:
    """The tokenizer with a response template that TRL gives to models of that kind."""
    trl = pytest.importorskip("trl.chat_template_utils")
    tokenizer.response_template = getattr(trl, template)
    return tokenizer


@pytest.mark.parametrize(
    ("template", "eos", "text"),
    [
        ("qwen3_template", "<|im_end|>", f"<think>\nhm\n</think>\n\n<tool_call>\n{JSON}\n</tool_call>"),
        ("llama3_template", "<|eot_id|>", '{"name": "add", "parameters": {"a": 1, "b": 2}}'),  # read only with its EOS
        (
            "gptoss_template",
            "<|return|>",
            "<|channel|>analysis<|message|>hm<|end|><|start|>assistant to=functions.add"
            '<|channel|>commentary json<|message|>{"a": 1, "b": 2}',
        ),
    ],
)
def test_a_tokenizer_reads_its_own_calls(tokenizer: Any, template: str, eos: str, text: str) -> None:
    own = own_parser(tokenizer, template)
    own.eos_token = eos
    assert calls_in(text, own) == [ADD]
    assert calls_in("The answer is 3.", own) == []


def test_texts_of_a_tokenizers_parser_and_what_it_cannot_read(tokenizer: Any) -> None:
    own = own_parser(tokenizer, "qwen3_5_template")
    call = "<tool_call>\n<function=add>\n<parameter=a>\n1\n</parameter>\n</function>\n</tool_call>"
    assert calls_in(call, own) == [Call("add", {"a": "1"})]
    assert calls_in(f"no {call} yet</think>3", own) == []  # the prompt opened the thought
    own = own_parser(tokenizer, "qwen3_template")
    (unparsed,) = calls_in("<tool_call>add 1</tool_call>", own)
    assert isinstance(unparsed, Unparsed) and "could not parse" in unparsed.reason and len(unparsed.reason) <= 200
