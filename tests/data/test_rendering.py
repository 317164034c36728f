"""The words of a conversation are found in what a chat template makes of it."""

import dataclasses

import pytest
from transformers import PreTrainedTokenizerFast

from prefopt.data import parse, tokenise
from prefopt.data.rendering import Renderer, begins_answer, joined
from prefopt.data.texts import decode_pieces


def user(text):
    return {"role": "user", "content": text}


def assistant(text, **more):
    return {"role": "assistant", "content": text, **more}


BODY = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"


def under(chatml, writes: str) -> PreTrainedTokenizerFast:
    made = PreTrainedTokenizerFast(tokenizer_object=chatml.backend_tokenizer, eos_token="<|im_end|>")
    made.chat_template = (
        f"{{% for m in messages %}}<|im_start|>{{{{ m['role'] }}}}\n{writes}<|im_end|>\n{{% endfor %}}{BODY}"
    )
    return made


def counts(row, tokenizer):
    _, report = tokenise([parse(row)], tokenizer)
    return {what: n for what, n in report.counts.items() if "template" in what}, report.refusal


@pytest.mark.parametrize(
    "answer",
    [
        "two words",
        "  spaced  ",
        "a<b>c",
        "<tag>",
        "x" * 300,
        "the the the",
        "assistant",
        "user\n",
        'say "hi" \\ n',
        "i < j",
    ],
)
@pytest.mark.parametrize("writes", ["{{ m['content'] }}", "{{ m['content'] | trim }}", "{{ m['content'] }} "])
def test_words_that_are_written_are_never_counted(chatml, answer, writes):
    row = {"messages": [user("what?"), assistant(answer), user("and?"), assistant("done")]}
    assert counts(row, under(chatml, writes)) == ({}, "")


@pytest.mark.parametrize(
    ("writes", "kind"),
    [
        ("{{ m['content'] | upper }}", "words"),
        ("{{ m['content'][:3] }}", "words"),
        ("{{ m['content'] | replace('answer', 'reply') }}", "words"),
        ("{{ m['content'].split('</think>')[-1] }}", "reasoning"),
    ],
)
def test_words_that_are_changed_or_left_out_are_counted_and_refused_where_all_are(chatml, writes, kind):
    row = {"messages": [user("Q"), assistant("<think>because</think>my answer")]}
    found, refusal = counts(row, under(chatml, writes))
    assert found[f"completions with {kind} that the chat template leaves out or changes"] == 1
    assert kind in refusal and "policy.tokenizer" in refusal


@pytest.mark.parametrize("role", ["system", "user"])
def test_prompts_whose_words_are_left_out_are_counted_by_role(chatml, role):
    writes = f"{{% if m['role'] != '{role}' %}}{{{{ m['content'] }}}}{{% endif %}}"
    row = {"prompt": [{"role": "system", "content": "Be terse."}, user("what?")], "completion": "yes"}
    expected = f"prompts with words of the {role} that the chat template leaves out or changes"
    assert counts(row, under(chatml, writes)) == ({expected: 1}, "")
    assert counts({"prompt": row["prompt"]}, under(chatml, writes)) == ({expected: 1}, "")


def test_some_rows_that_keep_their_words_are_enough_to_learn_from(chatml):
    tokenizer = under(chatml, "{% if 'secret' not in m['content'] %}{{ m['content'] }}{% endif %}")
    rows = [parse({"prompt": [user("q")], "completion": text}) for text in ("a secret", "open")]
    _, report = tokenise(rows, tokenizer)
    assert report.refusal == ""
    assert report.counts["completions with words that the chat template leaves out or changes"] == 1


def test_a_template_that_reads_parts_gets_parts(chatml):
    tokenizer = under(chatml, "{% for p in m['content'] %}{% if p.type == 'text' %}{{ p.text }}{% endif %}{% endfor %}")
    assert Renderer.of(tokenizer).parts
    ((row,), report) = tokenise([parse({"prompt": [user("what?")], "completion": "yes"})], tokenizer)
    assert tokenizer.decode(list(row.completion_ids[0])) == "yes<|im_end|>" and not report.counts


def test_an_answer_that_the_prompt_begins_is_gone_on_with(chatml):
    prompt = [user("capital of France?"), assistant("The capital is")]
    row = {"prompt": prompt, "chosen": [assistant(" Paris.")], "rejected": [assistant(" Rome.")]}
    ((made,), report) = tokenise([parse(row)], chatml)
    assert chatml.decode(list(made.prompt_ids)).endswith("<|im_start|>assistant\nThe capital is")
    assert [chatml.decode(list(ids)) for ids in made.completion_ids] == [" Paris.<|im_end|>", " Rome.<|im_end|>"]
    assert not report.counts and made.masks is None
    ((asked,), _) = tokenise([parse({"prompt": prompt})], chatml)
    assert asked.prompt_ids == made.prompt_ids


def test_turns_that_are_not_the_beginning_of_an_answer():
    call = {"type": "function", "function": {"name": "f", "arguments": {}}}
    assert not begins_answer((user("q"),))
    assert not begins_answer((user("q"), assistant("", tool_calls=[call])))
    assert joined((user("q"), assistant("a")), (user("r"), assistant("b"))) == (
        user("q"),
        assistant("a"),
        user("r"),
        assistant("b"),
    )


@pytest.mark.parametrize("end", ["<|im_end|>", ""])
def test_an_eos_of_an_earlier_turn_does_not_end_the_last(chatml, end):
    """A template that ends every turn but the last: what follows the last EOS was taken for the template's own."""
    tokenizer = under(chatml, "{{ m['content'] }}")
    tokenizer.chat_template = (
        "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}"
        f"{{% if not loop.last %}}<|im_end|>{{% else %}}{end}{{% endif %}}\n{{% endfor %}}{BODY}"
    )
    row = {"messages": [user("q"), assistant("first"), user("r"), assistant("second")]}
    ((made,), _) = tokenise([parse(row)], tokenizer)
    learnt = [i for i, mine in zip(made.completion_ids[0], made.masks[0], strict=True) if mine]
    # The prompt ends otherwise once it is answered, so its end is predicted too.
    assert tokenizer.decode(learnt).rpartition("assistant\n")[2].replace("\n", "") == "first<|im_end|>second<|im_end|>"


def test_marks_never_reach_the_tokens(chatml):
    example = parse({"messages": [user("q " * 50), assistant("a " * 50)]})
    ((row,), _) = tokenise([example], chatml)
    assert chatml.decode(list(row.completion_ids[0])) == "a " * 50 + "<|im_end|>"
    plain = dataclasses.replace(example, completions=(({"role": "assistant", "content": "\U000f0000"},),))
    assert tokenise([plain], chatml)[1].kept == 1


MOVING = (
    "{% set asked = messages[1:] %}{% for m in asked %}{% if m['role'] == 'user' %}<|im_start|>"
    "{% if loop.revindex0 < 2 %}{{ messages[0]['content'] }} {% endif %}{{ m['content'] }}\n"
    "{% else %}{{ m['content'] }}<|im_end|>{% endif %}{% endfor %}"
)
"""Puts the system turn into the last user's, as Mistral's templates do: an answered prompt is another text."""


def learnt(row, tokenizer, k=0):
    mask = row.masks[k] if row.masks else [True] * len(row.completion_ids[k])
    return tokenizer.decode([i for i, mine in zip(row.completion_ids[k], mask, strict=True) if mine])


def test_a_prompt_that_is_written_otherwise_once_it_is_answered_is_not_learnt(chatml):
    system, tokenizer = {"role": "system", "content": "Terse."}, under(chatml, "")
    tokenizer.chat_template = MOVING
    chat = [system, user("one"), assistant("first"), user("two"), assistant("second")]
    ((several,), _) = tokenise([parse({"messages": chat})], tokenizer)
    assert learnt(several, tokenizer) == "first<|im_end|>second<|im_end|>"
    # One answer: with a template that keeps the last two turns, the answered prompt has lost its first.
    tokenizer.chat_template = MOVING.replace("messages[1:]", "messages[-2:]").replace("< 2", "< 0")
    ((single,), _) = tokenise([parse({"prompt": chat[:4], "chosen": "yes", "rejected": "no"})], tokenizer)
    assert [learnt(single, tokenizer, k) for k in (0, 1)] == ["yes<|im_end|>", "no<|im_end|>"]


def test_special_tokens_are_told_from_texts_that_look_like_them(chatml):
    """Only ids tell them apart; the pieces together are the whole text, letters of several tokens included."""
    ids = [chatml.convert_tokens_to_ids("<|im_start|>"), chatml.convert_tokens_to_ids("<|im_end|>")]
    text = chatml("a <b> ☃", add_special_tokens=False)["input_ids"]
    pieces = decode_pieces(chatml, [*ids, *text, ids[1]])
    assert [special for _, special in pieces] == [True, True, False, True]
    assert [text for text, _ in pieces] == ["<|im_start|>", "<|im_end|>", chatml.decode(text), "<|im_end|>"]
