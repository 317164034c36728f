import importlib.util
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from prefopt.data.example import prompts
from prefopt.data.formats import FORMATS, parse, recognise, shared_prefix
from prefopt.support.errors import PrefoptError


def user(text):
    return {"role": "user", "content": text}


def bot(text):
    return {"role": "assistant", "content": text}


PAIR = {"prompt": "p", "chosen": "c", "rejected": "r"}
LIST = {"prompt": "p", "completions": ["a", "b", "c"]}


def test_paired():
    example = parse({**PAIR, "margin": 2, "id": "x"}, "pairs.jsonl:1")
    assert (example.prompt, example.completions, example.scores) == ("p", ("c", "r"), (0.5, -0.5))
    assert (example.group, example.where, dict(example.columns)) == ("p", "pairs.jsonl:1", {"margin": 2, "id": "x"})
    assert parse({**PAIR, "score_chosen": 7, "score_rejected": np.float32(3)}).scores == (7.0, 3.0)


def test_single_completions():
    assert parse({"prompt": "p", "completion": "c", "label": True}).scores == (0.5,)
    unpaired = parse({"prompt": "p", "completion": "c", "label": "0"})
    assert unpaired.scores == (-0.5,)
    assert unpaired.columns == {"label": False}
    demonstration = parse({"prompt": "p", "completion": "c"})
    assert (demonstration.completions, demonstration.scores) == (("c",), None)
    assert parse({"text": "once"}).completions == ("once",)
    assert parse({"text": "once"}).prompt == ""
    assert parse({"prompt": "p"}).size == 0


def test_texts_without_prompt_are_groups_of_their_own():
    assert parse({"text": "once"}).group != parse({"text": "twice"}).group


def test_lists():
    rated = parse({**LIST, "scores": [1, None, math.nan]})
    assert rated.scores == (1.0, None, None)
    assert parse({**LIST, "ranks": [2, 1, 2]}).scores == (-2.0, -1.0, -2.0)
    assert parse(LIST).scores is None
    assert parse({**LIST, "scores": np.array([1.0, 2.0, 3.0]), "cost": torch.tensor([1, 2, 3])}).columns["cost"] == [
        1,
        2,
        3,
    ]


def test_votes():
    # Rater 1: a > b > c. Rater 2: a = b, did not see c. So P(a>b) = (1 + ½)/2, P(a>c) = P(b>c) = 1.
    example = parse({**LIST, "votes": [[3, 2, 1], [5, 5, None]]})
    assert example.preference == ((0.5, 0.75, 1.0), (0.25, 0.5, 1.0), (0.0, 0.0, 0.5))
    assert example.scores is None
    # Nobody saw a and b together.
    assert parse({**LIST, "votes": [[3, None, 1], [None, 0, 2]]}).preference[0] == (0.5, 0.5, 1.0)
    assert parse({**PAIR, "votes": [3, 1]}).preference == ((0.5, 0.75), (0.25, 0.5))
    assert parse({**PAIR, "votes": [[1, 0], [2, 2]]}).preference == ((0.5, 0.75), (0.25, 0.5))


def test_preference():
    assert parse({**PAIR, "preference": 0.75}).preference == ((0.5, 0.75), (0.25, 0.5))
    rounded = parse({"prompt": "p", "completions": ["a", "b"], "preference": [[0.5, 0.6667], [0.3333, 0.5]]}).preference
    assert rounded[0][1] == pytest.approx(2 / 3, abs=1e-4)
    assert rounded[0][1] + rounded[1][0] == 1


def test_implicit_prompt_of_conversations():
    example = parse({"chosen": [user("q"), bot("yes")], "rejected": [user("q"), bot("no")]})
    assert example.prompt == (user("q"),)
    assert example.completions == ((bot("yes"),), (bot("no"),))


@pytest.fixture(scope="module")
def extract_prompt():
    """TRL's own, from its file: importing the whole package takes seconds."""
    package = importlib.util.find_spec("trl")
    if package is None:
        pytest.skip("trl is not installed")
    spec = importlib.util.spec_from_file_location("trl_data_utils", Path(package.origin).parent / "data_utils.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.extract_prompt


@settings(max_examples=200, deadline=None)
@given(st.text("ab ", max_size=6), st.text("ab ", min_size=1, max_size=6), st.text("ab ", min_size=1, max_size=6))
def test_implicit_prompt_is_trl_s(extract_prompt, prompt, chosen, rejected):
    chosen, rejected = prompt + chosen, prompt + rejected
    shortest = min(len(chosen), len(rejected))
    if chosen[:shortest] == rejected[:shortest] or chosen[0] != rejected[0]:
        # TRL reads chosen[-1] where the first characters differ, and one character too many where one text is the
        # other's beginning and a space precedes it; we promise only that something is left of each.
        assert shared_prefix((chosen, rejected)) < shortest
        return
    expected = extract_prompt({"chosen": chosen, "rejected": rejected})
    example = parse({"chosen": chosen, "rejected": rejected})
    assert (example.prompt, example.completions) == (expected["prompt"], (expected["chosen"], expected["rejected"]))


def test_prompt_repeated_in_the_completions():
    expected = ((user("q"),), ((bot("yes"),), (bot("no"),)))
    talks = {"chosen": [user("q"), bot("yes")], "rejected": [user("q"), bot("no")]}
    for row in (
        {"prompt": [user("q")], **talks},
        {"prompt": "q", **talks},  # UltraFeedback's form
        {"prompt": "q", "chosen": [bot("yes")], "rejected": [bot("no")]},
        {"prompt": [user("q")], "chosen": "yes", "rejected": "no"},
        {"prompt": [user("q")], "completions": ["yes", [user("q"), bot("no")]], "scores": [1, 0]},
    ):
        example = parse(row)
        assert (example.prompt, example.completions) == expected
    assert parse({"prompt": "ab", "completion": "abc"}).completions == ("abc",)  # text is never stripped


def test_messages():
    talk = [user("1"), bot("2"), user("3"), bot("4"), user("5")]
    example = parse({"messages": talk})
    assert example.prompt == (user("1"),)
    assert example.completions == ((bot("2"), user("3"), bot("4")),)
    arrow = {"role": "assistant", "content": "2", "tool_calls": None}
    assert parse({"messages": [user("1"), arrow]}).completions == ((bot("2"),),)


def test_group():
    assert parse({**PAIR, "group": 7}).group == "7"


def test_tasks_of_one_prompt_are_groups_of_their_own():
    one, other, again = (parse({**PAIR, "task": task}).group for task in (1, 2, 1))
    assert one == again != other
    assert parse({"prompt": [user("q")]}).group == parse({"prompt": [{"content": "q", "role": "user"}]}).group


def test_select_moves_everything_together():
    preference = [[0.5, 0.0, 0.25], [1.0, 0.5, 0.375], [0.75, 0.625, 0.5]]
    example = parse({**LIST, "scores": [1, 2, 3], "preference": preference, "cost": [7, 8, 9]})
    chosen = example.select([2, 0])
    assert chosen.completions == ("c", "a")
    assert chosen.scores == (3.0, 1.0)
    assert chosen.preference == ((0.5, 0.75), (0.25, 0.5))
    assert chosen.columns == {"cost": [9, 7]}


def test_prompts():
    examples = [parse({**LIST, "cost": [1, 2, 3], "id": 5}), parse(PAIR), parse({"prompt": "q"})]
    assert [(e.prompt, e.size, dict(e.columns)) for e in prompts(examples)] == [("p", 0, {"id": 5}), ("q", 0, {})]


def test_tasks_of_one_prompt_are_told_apart():
    rows = [{"prompt": "play", "task": task} for task in ("a", "b", "a", 1)]
    examples = [parse(row) for row in [*rows, {"prompt": "play"}, {"prompt": "play", "id": 2}]]
    assert [e.columns.get("task") for e in prompts(examples)] == ["a", "b", 1, None]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "p", "chosen": "c"}, "there is 'chosen' and no 'rejected'"),
        ({"prmpt": "p", "response": "c"}, "Did you mean 'prompt'"),
        ({"completion": "c"}, "no 'prompt'"),
        ({**PAIR, "score_chosen": 1}, "'score_chosen' but not the other"),
        ({**LIST, "scores": [1, 2]}, "2 numbers for 3 completions"),
        ({**LIST, "scores": [1, 2, "good"]}, "must hold numbers, not str 'good'"),
        ({**LIST, "scores": [1, 2, math.inf]}, "infinite"),
        ({**LIST, "scores": 3}, "must be a list"),
        ({**LIST, "ranks": [0, 1, 2]}, "ranks must be 1"),
        ({**LIST, "votes": [[1, None, None]]}, "no rater saw two"),
        ({**PAIR, "votes": [0, 0]}, "at least one"),
        ({**PAIR, "preference": 1.5}, "probabilities, not 1.5"),
        ({**PAIR, "preference": [[0.5, 0.8], [0.8, 0.5]]}, "sum 1"),
        ({**LIST, "preference": 0.5}, "3×3 matrix"),
        ({**LIST, "scores": [1, 2, 3], "cost": [1]}, "'cost' has 1 values for 3"),
        ({"prompt": "p", "completion": "c", "label": "good"}, "'label' must be true or false"),
        ({"prompt": 3}, "must be text or a list of messages"),
        ({"prompt": [{"from": "human", "value": "q"}]}, "keys are \\['from', 'value'\\]"),
        ({"prompt": [{"role": "user"}]}, "without 'content'"),
        ({"messages": [bot("hi")]}, "with another turn before it"),
        ({"prompt": [user("q")], "completion": [user("a")]}, "ends with a turn of 'user'"),
        (
            {"prompt": "other", "chosen": [user("q"), bot("a")], "rejected": [user("q"), bot("b")]},
            "not one of the turns",
        ),
    ],
)
def test_bad_rows(row, message):
    with pytest.raises(PrefoptError, match=f"^pairs.jsonl:17: .*{message}"):
        parse(row, "pairs.jsonl:17")


def test_an_unknown_format_lists_what_there_is_and_what_would_do():
    with pytest.raises(PrefoptError) as caught:
        recognise({"question": "q", "answer": "a"}, "x.csv:2")
    assert "Columns found: ['answer', 'question']" in str(caught.value)
    for name in ("paired", "ranked", "unpaired", "completions, votes or preference"):
        assert name in str(caught.value)


def test_every_example_of_the_documentation():
    text = (Path(__file__).parents[2] / "docs" / "data.md").read_text()
    blocks = "".join(line[4:] + "\n" if line.startswith("    ") else "\0" for line in text.splitlines())
    rows, decoder = [], json.JSONDecoder()
    for block in filter(None, (block.strip() for block in blocks.split("\0"))):
        while block:
            row, end = decoder.raw_decode(block)
            rows.append(row)
            block = block[end:].strip()
    assert {recognise(row) for row in rows} == set(FORMATS)
    for row in rows:
        parse(row)
