"""Completions as lists of steps: TRL's stepwise rows, where their steps end among the tokens, and their labels."""

import copy
import json

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from prefopt.data import collate, load_examples, parse, tokenise
from prefopt.data.loading import load
from prefopt.data.steps import in_steps, separator_of, split_steps
from prefopt.support.errors import PrefoptError

VOCABULARY = [*map(chr, range(32, 127)), "\n", "!\n", "\n\n", "<eos>"]
STEPWISE = {
    "prompt": "Which number is larger, 9.8 or 9.11?",
    "completions": ["11 is greater than 8.", "Hence, 9.11 > 9.8."],
    "labels": [True, False],
}
"""The row in the docstring of TRL's PRMTrainer."""


@pytest.fixture(scope="module")
def letters():
    """A tokenizer of letters, two of whose tokens reach over a letter: "!\\n" and "\\n\\n"."""
    core = Tokenizer(models.BPE({token: i for i, token in enumerate(VOCABULARY)}, [("!", "\n"), ("\n", "\n")]))
    core.pre_tokenizer = pre_tokenizers.Split("<eos>", "isolated")
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<eos>")


def trl_labels(row, tokenizer, separator="\n"):
    """TRL's `PRMTrainer.tokenize_row` (0.28): steps are tokenised one by one, a label is at its separator's last token."""
    ids, labels = [], []
    for step, label in zip(row["completions"], row["labels"], strict=True):
        own = tokenizer(step, add_special_tokens=False)["input_ids"]
        own = own + tokenizer.encode(separator, add_special_tokens=False)
        ids += own
        labels += [-100] * (len(own) - 1) + [int(label)]
    return ids, labels


def loaded(tmp_path, *rows):
    (tmp_path / "d.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return load_examples(tmp_path / "d.jsonl")


def test_trls_stepwise_rows_have_their_labels_where_trl_has_them(tmp_path, letters):
    (example,) = loaded(tmp_path, STEPWISE)
    assert example.completions == ("11 is greater than 8.\nHence, 9.11 > 9.8.\n",)
    assert (example.scores, example.columns["label"]) == ((-0.5,), False)
    rows, _ = tokenise([example], letters)
    batch = collate(rows, ["step_labels"])
    ids, labels = trl_labels(STEPWISE, letters)
    assert batch.completion_ids[0, 0].tolist() == [*ids, letters.eos_token_id]
    assert batch.step_ends[0, 0].tolist() == [label >= 0 for label in [*labels, -100]]
    assert batch.columns["step_labels"][0, 0].tolist() == [max(label, 0) for label in [*labels, -100]]
    assert batch.axis("step_ends") == batch.axis("step_labels") == "token"


def test_the_run_says_how_stepwise_rows_are_read(tmp_path):
    (tmp_path / "d.jsonl").write_text(json.dumps(STEPWISE))
    (note,) = load([str(tmp_path / "d.jsonl")]).notes
    assert note.startswith("read as stepwise: the steps are one answer")


def test_a_token_that_reaches_into_the_next_step_ends_the_one_before(letters):
    """`!` and the line break are one token; so are the line breaks behind the first and before the second step."""
    row = {"prompt": "q", "completion": ["a!", "\nb", "c"], "step_labels": [1, 0, 1]}
    (made,), _ = tokenise([parse(row)], letters)
    assert [letters.convert_ids_to_tokens(i) for i in made.completion_ids[0]] == [
        "a",
        "!\n",
        "\n",
        "b",
        "\n",
        "c",
        "\n",
        "<eos>",
    ]
    assert made.step_ends == ((1, 4, 6),)
    merged = parse({"prompt": "q", "completion": ["a", "\nb"], "step_labels": [1, 0]})
    (made,), _ = tokenise([merged], letters)
    assert [letters.convert_ids_to_tokens(i) for i in made.completion_ids[0]] == ["a", "\n\n", "b", "\n", "<eos>"]
    assert made.step_ends == ((1, 3),)


def test_pairs_and_lists_may_have_steps_and_a_separator_of_their_own(letters):
    pair = {"prompt": "q", "chosen": ["ab", "c"], "rejected": ["d"], "step_separator": ";"}
    (made,), _ = tokenise([parse(pair)], letters)
    assert made.example.completions == ("ab;c;", "d;")
    assert made.step_ends == ((2, 4), (1,))
    batch = collate([made])
    assert batch.step_ends[0].int().tolist() == [[0, 0, 1, 0, 1, 0], [0, 1, 0, 0, 0, 0]]
    assert batch.steps[0].tolist() == [[0, 0, 0, 1, 1, 1], [0, 0, 0, -1, -1, -1]]
    rated = parse({"prompt": "q", "completions": [["a"], ["b", "c"]], "scores": [1, 2]})
    (made,), _ = tokenise([rated.select([1, 0])], letters)
    assert made.example.steps == (("b\n", "c\n"), ("a\n",)) and made.step_ends == ((1, 3), (1,))
    assert made.select([1]).step_ends == ((1,),)


def test_nothing_may_follow_a_step(letters):
    row = parse({"prompt": "q", "completion": ["ab", "c"], "step_separator": ""})
    (made,), _ = tokenise([row], letters)
    assert (row.completions, made.step_ends, separator_of([row])) == (("abc",), ((1, 2),), None)


def test_steps_that_are_cut_off_have_no_label(letters):
    row = parse({"prompt": "q", "completion": ["ab", "cd"], "step_labels": [0, 1]})
    (made,), _ = tokenise([row], letters, None, 4)
    assert made.step_ends == ((2,),)
    batch = collate([made], ["step_labels"])
    assert int(batch.step_ends.sum()) == 1 and batch.columns["step_labels"].sum() == 0


def test_without_lists_a_step_is_a_run_of_the_mask(letters):
    (plain,), _ = tokenise([parse({"prompt": "q", "completion": "ab", "step_labels": [0.25]})], letters)
    batch = collate([plain], ["step_labels"])
    assert "step_ends" not in batch.columns
    assert batch.step_ends[0, 0].tolist() == [False, False, True]
    assert batch.columns["step_labels"][0, 0].tolist() == [0, 0, 0.25]


def test_beside_rows_with_steps_a_text_is_one_step(letters):
    rows, _ = tokenise([parse({"prompt": "q", "completion": text}) for text in (["a", "b"], "abc")], letters)
    assert collate(rows).step_ends[:, 0].int().tolist() == [[0, 1, 0, 1, 0], [0, 0, 0, 1, 0]]


TURNS = [
    {"role": "assistant", "content": "look"},
    {"role": "tool", "content": "found"},
    {"role": "assistant", "content": "so it is"},
]


def test_labels_of_a_conversation_are_of_the_assistants_turns(letters):
    letters = copy.deepcopy(letters)
    letters.chat_template = (
        "{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}<eos>{% endfor %}"
        "{% if add_generation_prompt %}[assistant]{% endif %}"
    )
    row = parse({"prompt": [{"role": "user", "content": "q"}], "completion": TURNS, "step_labels": [True, 0.5]})
    (made,), _ = tokenise([row], letters)
    batch = collate([made], ["step_labels"])
    ends = batch.step_ends[0, 0].nonzero().flatten().tolist()
    text = [letters.convert_ids_to_tokens(i) for i in made.completion_ids[0]]
    assert ends == [len("look"), len(text) - 1] and [text[i] for i in ends] == ["<eos>"] * 2
    assert batch.columns["step_labels"][0, 0, ends].tolist() == [1.0, 0.5]


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ({"chosen": ["a"], "rejected": "b"}, "lists of steps and others are not"),
        ({"chosen": ["a", " "], "rejected": ["b"]}, "a step is empty"),
        ({"chosen": ["a"], "rejected": ["b"], "step_separator": 1}, "must be the text that follows each step"),
        ({"completion": ["a", "b"], "step_labels": [1]}, "1 labels for completion 1, which has 2 steps"),
        ({"completion": ["a", "b"], "step_labels": [1, 2]}, "whether it is right"),
        ({"completion": ["a", "b"], "step_labels": [1, None]}, "whether it is right"),
        ({"completion": ["a", "b"], "step_labels": 1}, "must be a list"),
        ({"completions": [["a"], ["b"]], "step_labels": [[1]]}, "1 lists for 2 completions"),
    ],
)
def test_refusals(columns, words):
    with pytest.raises(PrefoptError, match=f"d:1: .*{words}"):
        parse({"prompt": "q", **columns}, "d:1")


def test_steps_follow_a_text():
    with pytest.raises(PrefoptError, match="in conversations, steps are the assistant's turns"):
        parse({"prompt": [{"role": "user", "content": "q"}], "completion": ["a", "b"]})
    with pytest.raises(PrefoptError, match="need a 'prompt'"):
        parse({"chosen": ["a"], "rejected": ["b"]})


@pytest.mark.parametrize(
    ("text", "steps"),
    [
        ("a\nb\n", ("a\n", "b\n")),
        ("a\nb", ("a\n", "b\n")),
        ("a\n\n\nb\n", ("a\n\n\n", "b\n")),
        ("a", ("a\n",)),
        ("a\n \n", ("a\n \n",)),
    ],
)
def test_a_text_is_cut_into_steps_and_is_the_same_joined(text, steps):
    assert split_steps(text, "\n") == steps
    assert "".join(steps) == text.removesuffix("\n") + "\n"


def test_texts_are_cut_like_the_rows_that_have_steps():
    stepwise = parse({"prompt": "q", "completion": ["a", "b"], "step_separator": ";"})
    assert separator_of([stepwise]) == ";"
    assert separator_of([parse({"prompt": "q", "completion": "a"})]) is None
    pair = in_steps(parse({"prompt": "q", "chosen": "x;y", "rejected": "z;"}), ";")
    assert pair.steps == (("x;", "y;"), ("z;",)) and pair.completions == ("x;y;", "z;")
    assert in_steps(stepwise, "\n") is stepwise


def test_rivals_with_labels_of_their_own_are_not_steps(tmp_path):
    """Ratings in a column `labels`, or labels of another number than completions, are no stepwise row."""
    (rivals,) = loaded(tmp_path, {**STEPWISE, "labels": [3, 4]})
    assert rivals.size == 2
    with pytest.raises(PrefoptError, match="steps of one answer"):
        loaded(tmp_path, {**STEPWISE, "labels": [True]})


def test_steps_are_padded_and_cut_with_their_batch(letters):
    (made,), _ = tokenise([parse({"prompt": "q", "chosen": ["a", "b"], "rejected": ["c"]})], letters)
    batch = collate([made])
    wider = batch.padded(3).extended(1)
    assert wider.step_ends.shape == (1, 3, 8)
    assert torch.equal(wider.step_ends[:, :2, :5], batch.step_ends) and not wider.step_ends[:, 2].any()
    assert (wider.steps[:, 2] == -1).all()
