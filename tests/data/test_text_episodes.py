"""Episodes in a plain text: what is read from rows, and what each token of them is."""

import pytest
import torch

from prefopt import PrefoptError
from prefopt.data import collate, parse, tokenise
from prefopt.data.text_episodes import as_data, as_seen
from prefopt.testbeds.games.language import tokenizer as games_tokenizer

EOS = 1


def says(text):
    return {"role": "assistant", "content": text}


def hears(text):
    return {"role": "environment", "content": text}


LONG = [says(" left"), hears(" b1"), says(" up <eos>"), hears(" c2"), says(" down")]
"""Its second turn ended by EOS, which is spelt out."""
SHORT = [says(" right"), hears(" a2"), says(" up")]


@pytest.fixture(scope="module")
def tokenizer():
    return games_tokenizer()


def ids_of(tokenizer, text):
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def made(row, tokenizer, **settings):
    (one,), _ = tokenise([parse(row)], tokenizer, **settings)
    return one


FORMS = {
    "paired": {"chosen": LONG, "rejected": SHORT},
    "rated": {"completions": [LONG, SHORT], "scores": [1, 0]},
    "ranked": {"completions": [LONG, SHORT], "ranks": [1, 2]},
    "compared": {"completions": [LONG, SHORT], "preference": 0.7},
    "unjudged": {"completions": [LONG, SHORT]},
    "unpaired": {"completion": LONG, "label": True},
    "demonstrations": {"completion": LONG},
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("behind", [[], [hears(" d4")]])
def test_contents_follow_one_another_and_the_environments_are_masked(form, behind, tokenizer):
    row = {name: [*value, *behind] if value is LONG else value for name, value in FORMS[form].items()}
    row |= {"completions": [[*LONG, *behind], SHORT]} if "completions" in row else {}
    one = made({"prompt": "lake", **row}, tokenizer)
    assert list(one.prompt_ids) == ids_of(tokenizer, "lake")
    assert list(one.completion_ids[0]) == ids_of(tokenizer, "left b1 up <eos> c2 down <eos>")
    batch = collate([one])
    assert batch.mask[0, 0].tolist() == [True, False, True, True, False, True, True]
    assert batch.step_ends[0, 0].nonzero()[:, 0].tolist() == [0, 3, 6]
    if one.size == 2:
        assert list(one.completion_ids[1]) == ids_of(tokenizer, "right a2 up <eos>")
        assert batch.mask[0, 1].tolist() == [True, False, True, True, False, False, False]


def test_eos_ends_those_of_which_the_row_does_not_say_otherwise(tokenizer):
    one = made({"prompt": "lake", "chosen": LONG, "rejected": " up", "eos": [False, True]}, tokenizer)
    assert list(one.completion_ids[0]) == ids_of(tokenizer, "left b1 up <eos> c2 down")
    assert list(one.completion_ids[1]) == ids_of(tokenizer, "up <eos>")
    assert one.step_ends == ((0, 3, 5), (1,))
    spelt = made({"prompt": "lake", "completion": [*SHORT[:2], says(" up <eos>")]}, tokenizer)
    assert list(spelt.completion_ids[0]) == ids_of(tokenizer, "right a2 up <eos>"), "once"
    text = made({"prompt": "lake", "completion": " up", "eos": False}, tokenizer)
    assert list(text.completion_ids[0]) == ids_of(tokenizer, "up")
    row = parse({"prompt": "lake", "chosen": LONG, "rejected": SHORT, "eos": [False, False]})
    (read,), _ = tokenise([row], tokenizer, ended=True)
    assert [ids[-1] for ids in read.completion_ids] == [EOS, EOS], "as models that score read them"
    assert read.step_ends == ((0, 3, 5), (0, 2))


def test_what_the_environment_says_first_is_the_prompts_where_all_begin_with_it(tokenizer):
    alike = made({"prompt": "lake", "chosen": [hears(" a1"), *LONG], "rejected": [hears(" a1"), *SHORT]}, tokenizer)
    assert list(alike.prompt_ids) == ids_of(tokenizer, "lake a1")
    assert alike.completion_ids == made({"prompt": "lake", **FORMS["paired"]}, tokenizer).completion_ids
    apart = made({"prompt": "lake", "chosen": [hears(" a1"), *LONG], "rejected": [hears(" d4"), *SHORT]}, tokenizer)
    assert list(apart.prompt_ids) == ids_of(tokenizer, "lake")
    assert apart.masks is not None and [mask[0] for mask in apart.masks] == [False, False]
    assert apart.step_ends == ((1, 4, 7), (1, 4))


def test_a_text_beside_an_episode_is_an_episode_of_one_turn(tokenizer):
    one = made({"prompt": "lake", "completions": [LONG, " up", [says(" up")]], "scores": [1, 0, 0]}, tokenizer)
    assert one.completion_ids[1] == one.completion_ids[2]
    assert one.masks is not None and one.masks[1] == (True, True)
    alone = made({"prompt": "lake", "completion": [says("up"), hears("")]}, tokenizer)
    assert alone.prompt_ids + alone.completion_ids[0] == tuple(ids_of(tokenizer, "lake up <eos>")), "nothing merges"


def test_what_is_written_out_is_read_as_the_same():
    row = {
        "prompt": "lake",
        "completions": [[says("up"), hears("d4")], "left", [says("a"), says("b")]],
        "scores": [1, 2, 3],
    }
    example = parse(row)
    assert parse({**row, "completions": as_data(example)}).completions == example.completions
    for k in range(3):
        (alone,) = as_data(example.select([k]))
        assert parse({"prompt": "lake", "completion": alone}).completions == example.completions[k : k + 1]


def test_a_text_prompt_without_the_environment_is_a_conversation_as_before():
    example = parse({"prompt": "lake", "completion": [says("up"), {"role": "user", "content": "b1"}, says("down")]})
    assert example.prompt == ({"role": "user", "content": "lake"},)


def test_the_environment_in_a_conversation_is_the_chat_templates():
    """Olmo's templates, for one, have this role for results of tools."""
    asked = [{"role": "user", "content": "lake"}]
    example = parse({"prompt": asked, "completion": [*LONG, hears(" d4")]})
    assert example.prompt == tuple(asked) and example.completions == (tuple(LONG),)


def test_labels_are_of_the_assistants_turns(tokenizer):
    one = made({"prompt": "lake", "completion": LONG, "step_labels": [True, False, 0.5]}, tokenizer)
    labels = collate([one], ["step_labels"]).columns["step_labels"]
    assert torch.equal(labels[0, 0], torch.tensor([1.0, 0, 0, 0, 0, 0, 0.5]))
    with pytest.raises(PrefoptError, match="2 labels for completion 1, which has 3 steps"):
        parse({"prompt": "lake", "completion": LONG, "step_labels": [True, False]})


def test_two_turns_without_an_answer_between_are_two_steps(tokenizer):
    one = made({"prompt": "lake", "completion": [says(" up"), says(" down"), hears(" a1")]}, tokenizer)
    assert list(one.completion_ids[0]) == ids_of(tokenizer, "up down <eos>") and one.step_ends == ((0, 2),)
    assert one.masks is None


def test_an_episode_that_is_too_long_loses_its_end(tokenizer):
    one = made({"prompt": "lake", "completion": LONG}, tokenizer, max_completion=4)
    assert list(one.completion_ids[0]) == ids_of(tokenizer, "left b1 up <eos>")
    assert one.completions_cut == (True,) and one.step_ends == ((0, 3),) and one.masks == ((True, False, True, True),)


def test_a_turn_of_nothing_is_an_empty_completion(tokenizer):
    (one,), report = tokenise(
        [parse({"prompt": "lake", "completions": [LONG, "  "], "scores": [1, 0]})], tokenizer, fewest=1
    )
    assert one.size == 1 and report.counts["completions dropped: empty"] == 1


def test_feedback_sees_texts():
    seen = as_seen(parse({"prompt": "lake", "chosen": [hears(" a1"), *LONG], "rejected": [hears(" a1"), *SHORT]}))
    assert seen.prompt == "lake a1" and seen.completions == (" left b1 up <eos> c2 down", " right a2 up")


REFUSED = {
    "another role": ([*SHORT, {"role": "user", "content": "?"}, says("!")], "a message of 'user' beside"),
    "tool calls": ([{**says("x"), "tool_calls": [{"function": {}}]}, *SHORT[1:]], "has 'tool_calls'"),
    "a thought": ([{**says("x"), "reasoning_content": "so"}, *SHORT[1:]], "has 'reasoning_content'"),
    "the environment alone": ([hears(" a1")], "only the environment speaks"),
    "an empty turn": ([says(""), hears(" a1"), says(" up")], "an empty turn"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_with_the_row(case):
    completion, words = REFUSED[case]
    with pytest.raises(PrefoptError, match=f"^rows:7: .*{words}"):
        parse({"prompt": "lake", "chosen": completion, "rejected": SHORT}, "rows:7")


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"prompt": "lake", "completion": SHORT, "eos": "yes"}, "true or false, not str"),
        ({"prompt": "lake", "chosen": LONG, "rejected": SHORT, "eos": [True]}, "1 values for 2 completions"),
        ({"prompt": [{"role": "user", "content": "x"}], "completion": "y", "eos": False}, "chat template ends"),
    ],
)
def test_eos_is_a_truth_value_for_each_completion(row, words):
    with pytest.raises(PrefoptError, match=words):
        parse(row)
