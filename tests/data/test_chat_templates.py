"""Every word of a conversation is learnt, counted or refused, under the chat templates that TRL ships."""

import importlib.util
from pathlib import Path

import pytest

if importlib.util.find_spec("trl") is None:
    pytest.skip("TRL is not installed", allow_module_level=True)

from templates import ANSWERED, ASKED, CALL, CONVERSATIONS, TOOL, outcome, templates

from make import data_page

DOCS = Path(__file__).parents[2] / "docs"
TEMPLATES = templates()
FAMILIES = ["deepseek_r1_distill", "gptoss", "llama3_2", "qwen3", "lfm2", "smolvlm", "gemma"]


def check(name: str, kind: str) -> None:
    row = CONVERSATIONS[kind]
    made = outcome(TEMPLATES[name], row)
    if made.refusal:
        return
    place = 0
    for turn in row["messages"]:
        content = turn["content"].rpartition("</think>")[2].strip()
        if turn["role"] == "assistant":
            place = made.learnt.index(content, place)
            for call in turn.get("tool_calls", ()):
                assert "lookup" in made.learnt and call["function"]["arguments"]["city"] in made.learnt
        else:
            assert content not in made.learnt
    if "reasoning" in kind and "reasoning" not in made.lost:
        assert "Because alpha." in made.learnt and "Because beta." in made.learnt
    if "Because alpha." not in made.learnt and "reasoning" in kind:
        assert "reasoning" in made.lost


@pytest.mark.parametrize("name", FAMILIES)
def test_every_word_is_learnt_counted_or_refused(name):
    for kind in CONVERSATIONS:
        check(name, kind)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(TEMPLATES.keys() - set(FAMILIES)))
def test_every_word_is_learnt_counted_or_refused_under_the_other_templates(name):
    for kind in CONVERSATIONS:
        check(name, kind)


@pytest.mark.parametrize(
    ("name", "kind", "learnt"),
    [
        ("qwen3", "two answers", "Reply one.<|im_end|><think>\n\n</think>\n\nReply two.<|im_end|>"),
        (
            "qwen3",
            "reasoning in tags",
            "Reply one.<|im_end|><think>\nBecause beta.\n</think>\n\nReply two.<|im_end|>",
        ),
        (
            "gptoss",
            "two answers",
            "<|channel|>final<|message|>Reply one.<|end|><|channel|>final<|message|>Reply two.<|return|>",
        ),
        (
            "gptoss",
            "tool call",
            ' to=functions.lookup<|channel|>commentary json<|message|>{"city": "Oslo"}<|call|>'
            "<|channel|>final<|message|>Reply one.<|return|>",
        ),
        ("deepseek_r1_distill", "two answers", "Reply one.<｜end▁of▁sentence｜>Reply two.<｜end▁of▁sentence｜>"),
        ("smolvlm", "two answers", " Reply one.<end_of_utterance> Reply two.<end_of_utterance>"),
        (
            "llama3_2",
            "tool call",
            '{"name": "lookup", "parameters": {"city": "Oslo"}}<|eot_id|>Reply one.<|eot_id|>',
        ),
    ],
)
def test_exactly_the_assistants_turns_and_their_ends_are_learnt(name, kind, learnt):
    assert outcome(TEMPLATES[name], CONVERSATIONS[kind]).learnt == learnt


TAGGED = {"role": "assistant", "content": "<answer>42</answer>"}
COUNTS = {
    "role": "assistant",
    "content": "",
    "tool_calls": [{"type": "function", "function": {"name": "lookup", "arguments": {"n": 5}}}],
}


@pytest.mark.parametrize(
    ("name", "turns", "learnt"),
    [
        ("nemotron_3_nano", [TAGGED], "</think><answer>42</answer><|im_end|>"),
        (
            "nemotron_3_nano",
            [COUNTS],
            "</think>\n<tool_call>\n<function=lookup>\n<parameter=n>\n5\n</parameter>\n</function>\n</tool_call>\n<|im_end|>",
        ),
        (
            "deepseekv3_training",
            [COUNTS],
            '<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>lookup\n```json\n{"n": 5}\n```<｜tool▁call▁end｜>'
            "<｜tool▁calls▁end｜><｜end▁of▁sentence｜>",
        ),
        (
            "deepseek_r1_distill",
            [CONVERSATIONS["one answer"]["messages"][1], ASKED[1], TAGGED],
            "Reply one.<｜end▁of▁sentence｜><answer>42</answer><｜end▁of▁sentence｜>",
        ),
        (
            "qwen3",
            [TAGGED, ASKED[1], TAGGED],
            "<answer>42</answer><|im_end|><think>\n\n</think>\n\n<answer>42</answer><|im_end|>",
        ),
    ],
)
def test_tags_and_numbers_at_the_ends_of_a_turn_are_learnt(name, turns, learnt):
    assert outcome(TEMPLATES[name], {"messages": [ASKED[0], *turns], "tools": [TOOL]}).learnt == learnt


@pytest.mark.parametrize(
    ("name", "learnt"),
    [
        ("llama3", "Reply one.<|eot_id|>Reply two.<|eot_id|>"),
        ("phi3", "Reply one.<|end|>Reply two.<|end|>"),
        ("qwen2_5", "Reply one.<|im_end|>Reply two.<|im_end|>"),
        ("qwen3", "Reply one.<|im_end|><think>\n\n</think>\n\nReply two.<|im_end|>"),
        ("gptoss", "<|channel|>final<|message|>Reply one.<|end|><|channel|>final<|message|>Reply two.<|return|>"),
        ("deepseek_r1_distill", "Reply one.<｜end▁of▁sentence｜>Reply two.<｜end▁of▁sentence｜>"),
        ("nemotron_3_nano", "</think>Reply one.<|im_end|></think>Reply two.<|im_end|>"),
        ("smolvlm", " Reply one.<end_of_utterance> Reply two.<end_of_utterance>"),
        ("gemma4", "Reply one.<turn|>Reply two.<turn|>"),
    ],
)
def test_headers_between_two_turns_of_the_assistant_are_not_learnt(name, learnt):
    assert outcome(TEMPLATES[name], {"messages": [ASKED[0], *ANSWERED]}).learnt == learnt


CALLED = '<|tool_call>call:lookup{city:<|"|>Oslo<|"|>}<tool_call|><|tool_response>'
COUNTED = "<|tool_call>call:lookup{n:5}<tool_call|><|tool_response>"


@pytest.mark.parametrize(
    ("name", "learnt"),
    [
        ("gemma4", f"{CALLED}Let me look.<turn|>Reply one.<turn|>"),
        ("gemma4_v3", f"{CALLED}Let me look.<turn|>Reply one.<turn|>"),
        ("gemma4_v5", f"{CALLED}Let me look.Reply one.<turn|>"),
        ("diffusion_gemma", f"{CALLED}Let me look.Reply one.<turn|>"),
        (
            "qwen2_5",
            'Let me look.\n<tool_call>\n{"name": "lookup", "arguments": {"city": "Oslo"}}\n</tool_call><|im_end|>'
            "Reply one.<|im_end|>",
        ),
    ],
)
def test_a_result_that_is_written_inside_the_turn_that_calls_is_not_learnt(name, learnt):
    calling = {"role": "assistant", "content": "Let me look.", "tool_calls": [CALL]}
    turns = [ASKED[0], calling, {"role": "tool", "name": "lookup", "content": "rain"}, ANSWERED[0]]
    made = outcome(TEMPLATES[name], {"messages": turns, "tools": [TOOL]})
    assert made.learnt == learnt and not made.lost


@pytest.mark.parametrize(("name", "end"), [("gemma4", "<turn|>"), ("gemma4_v5", ""), ("diffusion_gemma", "")])
def test_results_are_left_out_of_several_turns_whatever_they_say(name, end):
    """The call ends in a number, the answer begins with a tag, and a result says what the answer does."""
    turns = [
        ASKED[0],
        COUNTS | {"content": "<b>Look.</b>"},
        {"role": "tool", "name": "lookup", "content": "Look."},
        {"role": "assistant", "content": "Again.", "tool_calls": [CALL, CALL]},
        {"role": "tool", "name": "lookup", "content": "rain"},
        {"role": "tool", "name": "lookup", "content": "Again."},
        ANSWERED[0],
    ]
    learnt = outcome(TEMPLATES[name], {"messages": turns, "tools": [TOOL]}).learnt
    twice = CALLED.removesuffix("<|tool_response>") + CALLED
    assert learnt == f"{COUNTED}<b>Look.</b>{end}{twice}Again.{end}Reply one.<turn|>"


def test_a_tool_call_goes_on_with_the_answer_that_the_prompt_begins():
    call = {"role": "assistant", "content": None, "tool_calls": [CALL]}
    made = outcome(TEMPLATES["qwen2_5"], {"prompt": [ASKED[0], ANSWERED[0]], "completion": [call], "tools": [TOOL]})
    assert made.learnt == '\n<tool_call>\n{"name": "lookup", "arguments": {"city": "Oslo"}}\n</tool_call><|im_end|>'


@pytest.mark.parametrize(
    ("name", "kind", "words"),
    [
        ("deepseek_r1_distill", "reasoning in tags", "reasoning"),
        ("deepseek_r1_distill", "tool call", "tool calls"),
        ("lfm2", "tool call", "tool calls"),
        ("gemma", "system turn", "System role not supported"),
        ("llama3_2", "reasoning in its own key", "reasoning"),
    ],
)
def test_what_a_template_never_writes_is_refused(name, kind, words):
    assert words in outcome(TEMPLATES[name], CONVERSATIONS[kind]).refusal


@pytest.mark.parametrize("kind", ["reasoning in tags", "reasoning in its own key"])
def test_reasoning_of_earlier_turns_is_counted(kind):
    made = outcome(TEMPLATES["qwen3"], CONVERSATIONS[kind])
    assert made.lost == ("reasoning",) and not made.refusal


@pytest.mark.slow
def test_the_table_of_templates_is_what_they_do():
    assert (DOCS / "data.md").read_text() == data_page(DOCS), "out of date: python docs/make.py"
