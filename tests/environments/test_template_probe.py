"""Which chat templates can hold episodes: templates with the habits of those in use, in fewer words."""

from typing import Any

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from prefopt import PrefoptError, Turn
from prefopt.data import Example, Tokenised, tokenise
from prefopt.data.encoding import TextEncoder
from prefopt.environments.checking import Shown
from prefopt.environments.template_probe import TURNS, probe_template

TOOL = {"type": "function", "function": {"name": "look", "description": "Looks.", "parameters": {}}}

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

# As Qwen 3: thoughts stay in turns behind the user's last message, written anew, and the last turn always has one.
DROPS_THOUGHTS = """{%- set at = namespace(user=-1) %}
{%- for m in messages %}{% if m.role == 'user' %}{% set at.user = loop.index0 %}{% endif %}{% endfor %}
{%- for m in messages %}
  {%- if m.role == 'assistant' %}
    {%- set answer = m.content.split('</think>')[-1].lstrip('\n') %}
    {%- set thought = m.content.split('</think>')[0].split('<think>')[-1].strip('\n') if '</think>' in m.content else '' %}
    {{- '<|im_start|>assistant\n' }}
    {%- if loop.index0 > at.user and (loop.last or thought) %}{{- '<think>\n' + thought + '\n</think>\n\n' }}{% endif %}
    {{- answer + '<|im_end|>\n' }}
  {%- else %}
    {{- '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}
  {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
  {{- '<|im_start|>assistant\n' }}{% if thinking is defined %}{{- '<think>\n' }}{% endif %}
{%- endif %}"""

# As Llama 3.1: today's date in front, everything trimmed.
DATED = (
    "<|system|>Today is {{ strftime_now('%d %b %Y') }}<|eot|>"
    "{% for m in messages %}<|{{ m.role }}|>\n\n{{ m.content | trim }}<|eot|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n\n{% endif %}"
)

# As Gemma: the assistant is "model", users and it take turns, nobody else speaks, everything is trimmed.
ALTERNATES = (
    "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('user and assistant take turns') }}{% endif %}"
    "<start>{{ 'model' if m.role == 'assistant' else m.role }}\n{{ m.content | trim }}<end>\n{% endfor %}"
    "{% if add_generation_prompt %}<start>model\n{% endif %}"
)

# Writes the last turn of the assistant's alone.
FORGETS = "{% for m in messages %}{% if loop.last or m.role != 'assistant' %}{{ m.content }} {% endif %}{% endfor %}"


def probe(template: str, tools: Any = (), opening: Any = None, max_turns: int = 8, **columns: Any) -> str:
    core = Tokenizer(models.WordLevel({"<unk>": 0, "<eos>": 1}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, unk_token="<unk>", eos_token="<eos>", chat_template=template
    )
    prompt: Any = [{"role": "user", "content": "Look."}]
    rows, _ = tokenise([Example(columns.pop("prompt", prompt), columns=columns)], tokenizer)
    row: Tokenised = rows[0]
    return probe_template(row, Shown(opening, tools, Turn()), TextEncoder.of(tokenizer), "Env", max_turns)


def kinds(warning: str) -> list[str]:
    return [kind for kind in TURNS if f"those that {kind} (" in warning]


@pytest.mark.parametrize("tools", [(), [TOOL]])
def test_a_template_that_writes_what_it_is_given_is_not_mentioned(tools: Any) -> None:
    assert probe(CHATML, tools) == ""


@pytest.mark.parametrize(("template", "tools"), [(DATED, ()), (DATED, [TOOL]), (ALTERNATES, ())])
def test_of_a_template_that_trims_turns_with_outer_blanks_are_named(template: str, tools: Any) -> None:
    warning = probe(template, tools)
    assert kinds(warning) == ["begin with a blank or a new line", "end with a blank or a new line"]
    assert f"turns that a {'tool' if tools else 'user'} answers" in warning
    assert (
        r"Here it is. \n' becomes " in warning
        and "An episode with such a turn has no verdict: save the tokenizer" in warning
    )


def test_thoughts_are_kept_behind_the_last_question_alone() -> None:
    # Results of tools are no question: a turn that thinks stays as it is, and every other gets an empty thought.
    assert kinds(probe(DROPS_THOUGHTS, [TOOL])) == ["are words alone"]
    with pytest.raises(
        PrefoptError, match=r"Env: .* turns that a user answers, so that no episode can have two"
    ) as error:
        probe(DROPS_THOUGHTS)
    assert kinds(str(error.value)) == ["are words alone", "think"] and r"Let me see.\n</think>" in str(error.value)
    assert "max_turns: 1" in str(error.value) and "save the tokenizer with one" in str(error.value)


def test_a_thought_that_the_template_begins_is_gone_on_with() -> None:
    assert "think" not in kinds(probe(DROPS_THOUGHTS, [TOOL], chat_template_kwargs={"thinking": True}))


def test_a_template_without_a_place_for_results_is_refused() -> None:
    with pytest.raises(PrefoptError, match=r"turns that a tool answers.*user and assistant take turns"):
        probe(ALTERNATES, [TOOL])
    with pytest.raises(PrefoptError, match="refuses this conversation: user and assistant take turns"):
        probe(ALTERNATES, opening="Begin.")  # two messages of the user's in a row


def test_one_turn_is_never_written_again() -> None:
    with pytest.raises(PrefoptError, match="so that no episode can have two"):
        probe(FORGETS)
    assert probe(FORGETS, max_turns=1) == ""


def test_a_text_has_no_template() -> None:
    assert probe(FORGETS, prompt="Look.") == ""
    with pytest.raises(PrefoptError, match="offers tools, which a chat template writes"):
        probe(FORGETS, [TOOL], prompt="Look.")
