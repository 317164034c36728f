import dataclasses
import sys
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from prefopt.data import DiskRows, parse, preview, tokenise, tokenise_to_disk
from prefopt.data.repeats import CONTRADICTED, REPEATED
from prefopt.support.errors import PrefoptError


def pair(prompt, chosen, rejected, **columns):
    return parse({"prompt": prompt, "chosen": chosen, "rejected": rejected, **columns}, "pairs.jsonl:3")


def talk(*completions, prompt="q"):
    return parse({"prompt": [{"role": "user", "content": prompt}], "completions": list(completions)}, "talks.jsonl:3")


def texts(row, tokenizer):
    return tokenizer.decode(list(row.prompt_ids)), [tokenizer.decode(list(ids)) for ids in row.completion_ids]


def one(example, tokenizer, *limits, **settings):
    rows, report = tokenise([example], tokenizer, *limits, **settings)
    return (rows[0] if rows else None), report


def test_plain_text_gets_eos(plain):
    row, _ = one(pair("one: ", "two", "six"), plain)
    assert texts(row, plain) == ("one: ", ["two</s>", "six</s>"])
    assert row.scores == (0.5, -0.5)
    assert row.completions_cut == (False, False)
    assert row.masks is None


@pytest.mark.parametrize("written", ["two", "two</s>", "two</s></s>"])
def test_eos_comes_once(plain, with_bos, written):
    for tokenizer in (plain, with_bos):
        row, _ = one(pair("one: ", written, "six"), tokenizer)
        assert tokenizer.decode(list(row.completion_ids[0])) == "two</s>"


def test_eos_inside_a_text_stays(plain):
    assert texts(one(pair("one: ", "two</s>x", "six"), plain)[0], plain)[1][0] == "two</s>x</s>"


def test_merge_across_the_boundary(plain):
    # "xa" + "b" is x, ab to this tokenizer: the prompt's "a" is no token of the joint text, so it is predicted.
    row, report = one(pair("xa", "b", "c"), plain)
    assert texts(row, plain) == ("x", ["ab</s>", "ac</s>"])
    assert any("last tokens went to the completion" in what for what in report.counts)


def test_bos_comes_once(with_bos):
    for prompt in ("one", "<s>one"):  # a hand-written template may spell it out
        row, _ = one(pair(prompt, "two", "six"), with_bos)
        assert texts(row, with_bos) == ("<s>one", ["two</s>", "six</s>"])


def test_a_prompt_that_is_cut_keeps_a_beginning_of_texts_and_none_of_turns(with_bos):
    row, _ = one(pair("one two", "two", "six"), with_bos, 4, None)
    assert texts(row, with_bos)[0] == "<s>two"
    # A template whose turns begin with BOS: a lone one would open a turn without words.
    row, _ = one(pair("one<s>two", "two", "six"), with_bos, 3, None)
    assert texts(row, with_bos)[0] == "two"


def test_an_empty_prompt(plain, with_bos, bert):
    assert one(parse({"text": "once"}), plain)[0].prompt_ids == (plain.eos_token_id,)
    assert one(parse({"text": "once"}), with_bos)[0].prompt_ids == (with_bos.bos_token_id,)
    assert one(parse({"text": "once"}), bert)[0].prompt_ids == (bert.cls_token_id,)
    # A BOS that the tokenizer has but does not add by itself.
    quiet = PreTrainedTokenizerFast(tokenizer_object=plain.backend_tokenizer, eos_token="</s>", bos_token="~")
    assert one(parse({"text": "once"}), quiet)[0].prompt_ids == (quiet.bos_token_id,)


def test_encoder(bert):
    row, _ = one(pair("One ", "two", "SIX"), bert)
    assert texts(row, bert) == ("[CLS]one ", ["two[SEP]", "six[SEP]"])
    assert (*row.prompt_ids, *row.completion_ids[0]) == tuple(bert("One two")["input_ids"])


def test_chat_template_with_eos_and_newline(chatml):
    row, _ = one(talk("yes", "no"), chatml)
    prompt = "<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\n"
    assert texts(row, chatml) == (prompt, ["yes<|im_end|>", "no<|im_end|>"])


@pytest.mark.parametrize("answer", ["end", "i", "<|im_end|>", "a<|im_end|>b", "a\n"])
def test_chat_answers_that_look_like_the_template(chatml, answer):
    row, _ = one(talk(answer, "no"), chatml)
    if answer == "<|im_end|>":
        assert row.size == 1  # nothing is left of it
    else:
        assert texts(row, chatml)[1][0] == answer + "<|im_end|>"


def test_chat_template_without_eos(chat_without_eos):
    row, _ = one(talk("yes", "a</s>b"), chat_without_eos)
    assert texts(row, chat_without_eos) == ("[user] q\n[assistant] ", ["yes\n</s>", "a</s>b\n</s>"])
    # An EOS of the prompt's is not one that ends the answer.
    row, _ = one(talk("yes", prompt="a</s>b"), chat_without_eos)
    assert texts(row, chat_without_eos) == ("[user] a</s>b\n[assistant] ", ["yes\n</s>"])


def test_turns_of_others_are_masked(chatml):
    turns = [{"role": r, "content": c} for r, c in (("assistant", "2"), ("tool", "3"), ("assistant", "4"))]
    row, _ = one(talk(turns, "no"), chatml)
    ids, mask = row.completion_ids[0], row.masks[0]
    assert chatml.decode(list(ids)).endswith("<|im_start|>assistant\n4<|im_end|>")
    written = chatml.decode([token for token, mine in zip(ids, mask, strict=True) if mine])
    assert written == "2<|im_end|>4<|im_end|>"
    assert row.masks[1] == (True,) * 3
    assert "⟦2<|im_end|>⟧\n<|im_start|>tool\n3" in preview(row, chatml).plain


@pytest.mark.parametrize("between", [[], [{"role": "tool", "content": "3"}]])
def test_turns_before_one_without_words_are_kept(chatml, between):
    """As of a policy that ends its last turn at once."""
    turns = [{"role": "assistant", "content": "2"}, *between, {"role": "assistant", "content": ""}]
    row, _ = one(talk(turns, "no"), chatml)
    ids, mask = row.completion_ids[0], row.masks[0]
    assert chatml.decode(list(ids)).endswith("<|im_start|>assistant\n<|im_end|>")
    written = chatml.decode([token for token, mine in zip(ids, mask, strict=True) if mine])
    assert written == "2<|im_end|><|im_end|>"


def test_messages_train_every_turn_of_the_assistant(chat_without_eos):
    turns = [
        {"role": r, "content": c} for r, c in (("user", "1"), ("assistant", "2"), ("user", "3"), ("assistant", "4"))
    ]
    row, _ = one(parse({"messages": turns}), chat_without_eos)
    assert texts(row, chat_without_eos) == ("[user] 1\n[assistant] ", ["2\n[user] 3\n[assistant] 4\n</s>"])
    written = [token for token, mine in zip(row.completion_ids[0], row.masks[0], strict=True) if mine]
    assert chat_without_eos.decode(written) == "2\n4\n</s>"


def test_cutting(with_bos, plain):
    row, report = one(pair("12345678", "abcdef", "xy"), with_bos, 4, 3)
    assert texts(row, with_bos) == ("<s>678", ["abc", "xy</s>"])
    assert (row.prompt_cut, row.completions_cut) == (True, (True, False))
    assert sorted(report.counts.values()) == [1, 1]
    assert texts(one(pair("12345678", "abcdef", "xy"), plain, 4)[0], plain)[0] == "5678"
    row, report = one(pair("1234", "cd", "xyz"), plain, 4, 3)  # exactly as long as allowed
    assert (row.prompt_cut, row.completions_cut) == (False, (False, True))


def test_empty_completions_are_dropped_and_counted(plain):
    rows, report = tokenise([pair("p", "", "no"), pair("p", "</s>", ""), pair("p", "yes", "no")], plain)
    assert [row.size for row in rows] == [1, 2]
    assert rows[0].scores == (-0.5,)
    assert rows[0].example.completions == ("no",)
    assert [row.row for row in rows] == [0, 2]
    assert report.counts == {"completions dropped: empty": 3, "prompts dropped: too few completions left": 1}
    assert len(tokenise([pair("p", "", "no")], plain, fewest=2)[0]) == 0


def test_rows_on_disk_are_those_in_memory(plain):
    examples = [pair("p", "", "no"), pair("pppp", "yes", "no"), pair("p", "</s>", "")]
    rows, report = tokenise(examples, plain, 3, fewest=1)
    stored, same_report = tokenise_to_disk(examples, plain, 3, fewest=1)
    assert isinstance(rows, list) and isinstance(stored, DiskRows)
    assert list(stored) == rows and len(rows) == report.kept == 2
    assert same_report == report


def test_an_empty_completion_next_to_a_merge(plain):
    assert one(pair("xa", "", "b"), plain)[0].size == 1


def test_completions_without_score_are_absent(plain):
    example = parse({"prompt": "p", "completions": ["a", "b", "c"], "scores": [1, None, 3], "cost": [7, 8, 9]})
    row, report = one(example, plain)
    assert (row.scores, row.columns["cost"], row.size) == ((1.0, 3.0), [7, 9], 2)
    assert report.counts == {"completions dropped: without a score": 1}
    mine = dataclasses.replace(example, columns={"mine": [7, 8, 9]})
    ((row,), _) = tokenise([mine], plain, axes={"mine": "completion"})
    assert row.columns["mine"] == [7, 9]


def test_prompts_alone(plain, chatml):
    assert one(parse({"prompt": "one"}), plain)[0].completion_ids == ()
    row, _ = one(parse({"prompt": [{"role": "user", "content": "q"}]}), chatml)
    assert chatml.decode(list(row.prompt_ids)).endswith("assistant\n")


def test_report(plain):
    _, report = tokenise([pair("p", "", "no"), pair("pppp", "yes", "no")], plain, 3)
    assert str(report) == (
        "2 of 2 examples kept\n"
        "tokens, median and most: prompts 3, 3; completions 3, 4\n"
        "1 completions dropped: empty\n"
        "1 prompts cut at the beginning"
    )


def test_preview(plain):
    text = preview(one(pair("one: ", "two", "six", score_chosen=2, score_rejected=1), plain)[0], plain).plain
    assert text.splitlines() == [
        "prompt (5 tokens)",
        "one: ",
        "completion 1 (4 tokens, score 2)",
        "⟦two</s>⟧",
        "completion 2 (4 tokens, score 1)",
        "⟦six</s>⟧",
    ]


def test_refusals(plain, chatml):
    mute = PreTrainedTokenizerFast(tokenizer_object=plain.backend_tokenizer)
    with pytest.raises(PrefoptError, match=r"the tokenizer .*has neither an EOS nor a SEP"):
        tokenise([], mute)
    with pytest.raises(PrefoptError, match=r"talks.jsonl:3: .*no chat template: .* policy\.tokenizer"):
        tokenise([talk("yes")], plain)
    spoken = parse({"prompt": "one", "completion": [{"role": "assistant", "content": "two"}]})
    with pytest.raises(
        PrefoptError, match=r'plain text is known by a message .*{"role": "environment", "content": ""}'
    ):
        tokenise([spoken], plain)
    with pytest.raises(PrefoptError, match="prompt must be at least 1, not 0"):
        tokenise([], plain, 0)
    strict = PreTrainedTokenizerFast(tokenizer_object=chatml.backend_tokenizer, eos_token="<|im_end|>")
    strict.chat_template = "{{ raise_exception('roles must alternate') }}"
    with pytest.raises(PrefoptError, match=r"talks.jsonl:3: .*roles must alternate"):
        tokenise([talk("yes")], strict)


@settings(max_examples=60, deadline=None)
@given(st.text("abx ", max_size=8), st.lists(st.text("abx ", min_size=1, max_size=8), min_size=1, max_size=4))
def test_prompt_and_completion_make_up_the_joint_text(plain, prompt, completions):
    row, _ = one(parse({"prompt": prompt, "completions": completions}), plain)
    for ids, completion in zip(row.completion_ids, completions, strict=True):
        joint = [*(row.prompt_ids if row.prompt_ids != (plain.eos_token_id,) else ()), *ids]
        assert joint == [*plain(prompt + completion)["input_ids"], plain.eos_token_id]


def test_the_same_rows_one_by_one_and_together(chatml, monkeypatch):
    examples = [talk("yes" * (i % 5), f"no {i}", prompt=f"q{i}") for i in range(9)]
    monkeypatch.setattr(sys.modules[tokenise.__module__], "CHUNK", 2)
    together, _ = tokenise(examples, chatml)
    alone = [dataclasses.replace(tokenise([e], chatml)[0][0], row=i) for i, e in enumerate(examples)]
    assert list(together) == alone


def test_fast_enough(chatml):
    examples = [talk("yes " * 20, "no " * 20, prompt=f"question {i} " * 10) for i in range(1000)]
    start = time.process_time()
    tokenise(examples, chatml)
    assert time.process_time() - start < 5  # .4 s in fact; a tenth of a slow path would show


@pytest.mark.parametrize(
    ("prompt", "chosen", "expected"),
    [
        ("is it ", "so", {}),
        ("is it ", "✓ so", {"completions": 1}),
        ("✓ is it ", "so", {"prompts": 1}),
        ("<unk>", "✓ <unk>", {"prompts": 1, "completions": 1}),
    ],
)
def test_characters_without_a_token_are_counted(prompt, chosen, expected):
    core = Tokenizer(models.WordLevel({"</s>": 0, "<unk>": 1, **{c: i for i, c in enumerate("is to", 2)}}, "<unk>"))
    core.pre_tokenizer = pre_tokenizers.Split(Regex(r"<unk>|[\s\S]"), "isolated")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="</s>", unk_token="<unk>")
    _, report = one(pair(prompt, chosen, "it"), tokenizer)
    what = "with words or characters that the tokenizer has no token for"
    assert {name: n for name, n in report.counts.items() if what in name} == {
        f"{side} {what}": n for side, n in expected.items()
    }


PAIR = {"prompt": "p", "chosen": "a", "rejected": "b"}


@pytest.mark.parametrize(
    ("rows", "limit", "repeated", "contradicted"),
    [
        ([PAIR, PAIR | {"prompt": "q"}, PAIR | {"chosen": "c"}], None, 0, 0),
        ([PAIR, PAIR, PAIR], None, 2, 0),
        ([PAIR, PAIR | {"chosen": "b", "rejected": "a"}], None, 0, 1),
        ([PAIR, {"prompt": "p", "completions": ["b", "a"], "scores": [1, 2]}], None, 1, 0),
        ([PAIR | {"chosen": "ax"}, PAIR | {"chosen": "ay"}], 1, 1, 0),  # the same once they are cut
        ([PAIR | {"rejected": "a"}, PAIR | {"rejected": "a"}], None, 1, 0),  # nothing is ordered
        ([{"prompt": "p"}, {"prompt": "p"}, {"prompt": "q"}], None, 1, 0),
        ([{"prompt": "p", "task": task} for task in ("1", "2", "1", 2)], None, 2, 0),
        ([{"prompt": "p"}, {"prompt": "p", "task": "1"}], None, 0, 0),
        ([PAIR | {"task": 1}, PAIR | {"task": 2, "chosen": "b", "rejected": "a"}], None, 0, 0),
        ([{"prompt": "p", "completion": "a", "label": label} for label in (True, False, True)], None, 1, 0),
    ],
)
def test_rows_that_repeat_or_contradict_others_are_counted(plain, rows, limit, repeated, contradicted):
    _, report = tokenise([parse(row) for row in rows], plain, None, limit)
    assert report.counts.get(REPEATED, 0) == repeated and report.counts.get(CONTRADICTED, 0) == contradicted
