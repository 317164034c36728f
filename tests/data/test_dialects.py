"""Every dialect: rows in the columns of its data set become examples, and rows that contradict themselves are refused."""

import json

import pytest

from prefopt.data import load_examples
from prefopt.data.dialects import DIALECTS
from prefopt.data.loading import load
from prefopt.support.errors import PrefoptError


def user(text):
    return {"role": "user", "content": text}


def said(*texts):
    return tuple(({"role": "assistant", "content": text},) for text in texts)


def aspect(rating):
    return {"Rating": rating, "Rationale": "because"}


def judged(response, overall, ratings):
    names = ("instruction_following", "honesty", "truthfulness", "helpfulness")
    return {
        "model": "m",
        "principle": "helpfulness",
        "custom_system_prompt": "Be kind.",
        "response": response,
        "critique": "fine",
        "overall_score": overall,
        "annotations": {name: aspect(rating) for name, rating in zip(names, ratings, strict=True)},
    }


ULTRAFEEDBACK = [
    {
        "source": "s",
        "instruction": "q",
        "models": ["m", "n"],
        "completions": [judged("a", 10.0, ["1", "2", "1", "N/A"]), judged("b", 7.5, ["5", "4", "5", "4"])],
        "correct_answers": [],
        "incorrect_answers": [],
    }
]
SAFE = {
    "prompt": "q",
    "response_0": "a",
    "response_1": "b",
    "is_response_0_safe": True,
    "is_response_1_safe": False,
    "better_response_id": 1,
    "safer_response_id": 0,
}
HH = {"chosen": "\n\nHuman: q\n\nAssistant: the a", "rejected": "\n\nHuman: q\n\nAssistant: the b"}


def rated(response, helpfulness):
    return {
        "prompt": "q\n<extra_id_1>Assistant\nr\n<extra_id_1>User\nand?",
        "response": response,
        "helpfulness": helpfulness,
        "correctness": 1,
        "coherence": 4,
        "complexity": 2,
        "verbosity": 2,
    }


def battle(winner, last="a"):
    sides = {"conversation_a": [user("q"), said(last)[0][0]], "conversation_b": [user("q"), said("b")[0][0]]}
    return {"question_id": "1", "model_a": "m", "model_b": "n", "winner": winner, **sides, "turn": 1}


def message(name, parent, role, text, rank=None, deleted=False):
    return {
        "message_id": name,
        "parent_id": parent,
        "message_tree_id": "t",
        "role": role,
        "text": text,
        "rank": rank,
        "deleted": deleted,
        "lang": "en",
    }


TREE = [
    message("t", None, "prompter", "q"),
    message("1", "t", "assistant", "worse", 1),
    message("2", "t", "assistant", "better", 0),
    message("3", "t", "assistant", "gone", None, deleted=True),
    message("4", "2", "prompter", "and?"),
    message("5", "4", "assistant", "so"),
]
TURNS = (user("q"), {"role": "assistant", "content": "r"}, user("and?"))

READ = {
    "ultrafeedback-overall": (ULTRAFEEDBACK, [((user("q"),), said("a", "b"), (10.0, 7.5))]),
    "ultrafeedback-aspects": (ULTRAFEEDBACK, [((user("q"),), said("a", "b"), (4 / 3, 4.5))]),
    "helpsteer2": ([rated("a", 1), rated("b", 4)], [(TURNS, said("a", "b"), (1, 4))]),
    "helpsteer2-preference": (
        [{"prompt": "q", "response_1": "a", "response_2": "b", "preference_strength": 3, "split": "train"}],
        [((user("q"),), said("a", "b"), (-1.5, 1.5))],
    ),
    "helpsteer3": (
        [
            {
                "domain": "general",
                "language": "english",
                "context": list(TURNS),
                "response1": "a",
                "response2": "b",
                "overall_preference": -2,
                "individual_preference": [],
            }
        ],
        [(TURNS, said("a", "b"), (1, -1))],
    ),
    "nectar": (
        [
            {
                "prompt": "\n\nHuman: q\n\nAssistant: r\n\nHuman: and?\n\nAssistant: ",
                "answers": [{"answer": "a", "model": "m", "rank": 2.0}, {"answer": "b", "model": "n", "rank": 1.0}],
                "turns": 2,
            }
        ],
        [(TURNS, said("a", "b"), (-2, -1))],
    ),
    "shp": (
        [{"history": "q", "human_ref_A": "a", "human_ref_B": "b", "labels": 1, "score_A": 9, "score_B": 2}],
        [((user("q"),), said("a", "b"), (9, 2))],
    ),
    "webgpt": (
        [
            {
                "question": {"dataset": "eli5", "id": "1", "full_text": "q"},
                "answer_0": "a",
                "answer_1": "b",
                "score_0": -0.5,
                "score_1": 0.5,
                "quotes_0": {"title": [], "extract": []},
            }
        ],
        [((user("q"),), said("a", "b"), (-0.5, 0.5))],
    ),
    "saferlhf-better": ([SAFE], [((user("q"),), said("b", "a"), (0.5, -0.5))]),
    "saferlhf-safer": ([SAFE], [((user("q"),), said("a", "b"), (0.5, -0.5))]),
    "summarize-from-feedback": (
        [
            {
                "info": {"id": "1", "post": "p", "title": "t", "subreddit": "s", "site": None, "article": None},
                "summaries": [{"text": " a", "policy": "x"}, {"text": "b", "policy": "y"}],
                "choice": 1,
                "worker": "w",
            },
            {
                "info": {"id": "2", "post": None, "title": "t", "subreddit": None, "article": "x"},
                "summaries": [{"text": " a", "policy": "x"}, {"text": "b", "policy": "y"}],
                "choice": 0,
            },
        ],
        [
            ("SUBREDDIT: r/s\n\nTITLE: t\n\nPOST: p\n\nTL;DR:", (" b", " a"), (0.5, -0.5)),
            ("Article:\nx\n\nTL;DR:", (" a", " b"), (0.5, -0.5)),
        ],
    ),
    "arena-55k": (
        [
            {
                "id": 1,
                "prompt": '["q", "and?"]',
                "response_a": '["a", "c"]',
                "response_b": '["b", "d"]',
                "winner_model_a": 0,
                "winner_model_b": 1,
                "winner_tie": 0,
            }
        ],
        [((user("q"),), tuple((*said(one)[0], user("and?"), *said(two)[0]) for one, two in ("ac", "bd")), 0.0)],
    ),
    "arena": (
        [battle("tie (bothbad)"), battle("model_a"), battle("tie", last="")],
        [((user("q"),), said("a", "b"), 0.5), ((user("q"),), said("a", "b"), 1.0)],
    ),
    "hh": ([HH], [("\n\nHuman: q\n\nAssistant:", (" the a", " the b"), (0.5, -0.5))]),
    "hh-chat": ([HH], [((user("q"),), said("the a", "the b"), (0.5, -0.5))]),
    "oasst": (
        TREE,
        [
            ((user("q"),), said("worse", "better"), (-2, -1)),
            ((user("q"), *said("better")[0], user("and?")), said("so"), (-1,)),
        ],
    ),
    "orca-pairs": (
        [
            {"system": "Be kind.", "question": "q", "chosen": "a", "rejected": "b"},
            {"system": "", "input": "q", "chosen": "a", "rejected": "b", "status": "unchanged"},
            {"system": "", "input": "q", "chosen": "a", "rejected": "b", "status": "tie"},
        ],
        [
            (({"role": "system", "content": "Be kind."}, user("q")), said("a", "b"), (0.5, -0.5)),
            ((user("q"),), said("a", "b"), (0.5, -0.5)),
        ],
    ),
    "ultrainteract": (
        [
            {
                "task": "Math",
                "trajectory": [
                    {"from": "user", "value": "q"},
                    {"from": "assistant", "value": "r"},
                    {"from": "user", "value": "and?"},
                ],
                "chosen": "a",
                "rejected": "b",
                "id": "1_2",
                "parent_id": "1",
            }
        ],
        [(TURNS, said("a", "b"), (0.5, -0.5))],
    ),
    "argilla": (
        [
            {
                "id": "1",
                "fields": {"instruction": "q", "response1": "a", "response2": "b"},
                "responses": {"better": [{"value": "response2", "user_id": "u"}, {"value": "tie", "user_id": "v"}]},
                "suggestions": {},
            }
        ],
        [((user("q"),), said("a", "b"), 0.25)],
    ),
    "label-studio": (
        [
            {
                "id": 1,
                "data": {"prompt": "q", "answer1": "a", "answer2": "b"},
                "annotations": [
                    {"result": [{"from_name": "c", "to_name": "c", "type": "pairwise", "value": {"selected": "right"}}]}
                ],
            }
        ],
        [((user("q"),), said("a", "b"), 0.0)],
    ),
    "stepwise": (
        [{"prompt": "q", "completions": ["one", "two"], "labels": [True, False]}],
        [("q", ("one\ntwo\n",), (-0.5,))],
    ),
    "stepwise-whole": (
        [{"prompt": "q", "completions": ["one", "two"], "labels": [True, False]}],
        [("q", ("one\ntwo",), (-0.5,))],
    ),
}
"""Rows of each dialect, and the prompt, completions and scores (or P(the first beats the second)) that are to come of them."""

TWO_QUESTIONS = {"ultrafeedback-overall", "ultrafeedback-aspects", "saferlhf-better", "saferlhf-safer"}


def saved(tmp_path, rows):
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def outcome(example):
    values = example.scores if example.preference is None else example.preference[0][1]
    return example.prompt, example.completions, pytest.approx(values)


@pytest.mark.parametrize("name", DIALECTS)
def test_rows_of_each_dialect(tmp_path, name):
    rows, expected = READ[name]
    file = saved(tmp_path, rows)
    assert [outcome(example) for example in load_examples(file, adapt=name)] == expected
    if not DIALECTS[name].recognised or name in TWO_QUESTIONS:
        return
    by_itself, notes = load(file)
    assert [outcome(example) for example in by_itself] == expected
    assert notes[0] == f"read as {name}: {DIALECTS[name].reading}"


@pytest.mark.parametrize(("rows", "names"), [(ULTRAFEEDBACK, "overall.*aspects"), ([SAFE], "better.*safer")])
def test_two_questions_are_not_chosen_between(tmp_path, rows, names):
    with pytest.raises(PrefoptError, match=rf"rows\.jsonl:1: .*more than one question.*adapt: .*{names}"):
        load_examples(saved(tmp_path, rows))


def changed(name, **columns):
    return [READ[name][0][0] | columns]


@pytest.mark.parametrize(
    ("rows", "adapt", "message"),
    [
        (changed("nectar", answers=[{"answer": "a", "model": "m", "rank": None}]), None, "'rank' has no number"),
        (changed("arena-55k", winner_model_b=0), None, r"one of winner_model_a, .* must be 1"),
        (changed("arena-55k", winner_tie=1), None, r"one of winner_model_a, .* must be 1"),
        (changed("arena-55k", response_a='["a"]'), None, "'response_a' 1 and 'response_b' 2"),
        (changed("arena", winner="model_c"), None, "'winner' is 'model_c'"),
        (changed("arena", conversation_b=[user("r"), said("b")[0][0]]), None, "do not begin with one prompt"),
        (changed("shp", labels=0), None, "'labels' 0 prefers B, and the scores are 9 and 2"),
        (changed("webgpt", score_0=0.5), None, "must have the sum 0"),
        (changed("helpsteer3", overall_preference=5), None, "goes from -3"),
        (changed("helpsteer2", helpfulness=None), None, "'helpfulness' has no number"),
        (changed("summarize-from-feedback", choice=2), None, "must be 0 or 1 among 2"),
        (
            [SAFE | {"safer_response_id": 1}],
            "saferlhf-safer",
            "'is_response_1_safe' is false where the other's is true",
        ),
        ([SAFE | {"better_response_id": None}], "saferlhf-better", "'better_response_id' is missing"),
        (ULTRAFEEDBACK, "helpsteer2", "read as helpsteer2, and has no 'prompt', 'response'"),
        (ULTRAFEEDBACK, "helpster2", r"no dialect. Did you mean 'helpsteer2'\?.*file\.py:function"),
        ([TREE[0], TREE[1] | {"rank": 0}, TREE[2]], None, "two replies have one rank"),
        ([TREE[4], TREE[5]], None, "the message '2' above this one is not in its tree"),
    ],
)
def test_rows_that_contradict_themselves_are_refused(tmp_path, rows, adapt, message):
    with pytest.raises(PrefoptError, match=message) as error:
        load_examples(saved(tmp_path, rows), adapt=adapt)
    assert "rows.jsonl:" in str(error.value) or "no dialect" in message


def test_rows_that_are_left_out_are_counted(tmp_path):
    other = HH | {"rejected": "\n\nHuman: r\n\nAssistant: b"}
    rows, notes = load(saved(tmp_path, [HH, other, HH | {"rejected": "\n\nHuman: q\n\nAssistant:"}, other]))
    assert len(rows) == 1
    assert notes[1:] == ("2 rows left out: the two dialogues have not one prompt", "1 row left out: without an answer")
    (tmp_path / "mine.py").write_text("def some(row):\n    return None if row['prompt'] == 'q' else row\n")
    file = saved(tmp_path, [{"prompt": "q", "completion": "a"}, {"prompt": "r", "completion": "a"}])
    assert load(file, adapt="mine.py:some", folder=tmp_path).notes == ("1 row left out: mine.py:some returned None",)
    with pytest.raises(PrefoptError, match=r"no rows; 1 row left out: mine\.py:some returned None"):
        load(saved(tmp_path, [{"prompt": "q", "completion": "a"}]), adapt="mine.py:some", folder=tmp_path)


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "q", "chosen": "\n\nHuman: a", "rejected": "\n\nHuman: b"},
        {"prompt": "q", "completions": ["a", "b"], "scores": [1, 2]},
        {
            "prompt": "q",
            "prompt_id": "1",
            "messages": [],
            "chosen": [user("q"), *said("a")[0]],
            "rejected": [user("q"), *said("b")[0]],
        },
        {"source": "s", "chosen": [user("q"), *said("a")[0]], "rejected": [user("q"), *said("b")[0]]},
        {"system": "s", "prompt": "q", "completion": "a", "label": True},
    ],
)
def test_formats_are_no_dialects(tmp_path, row):
    assert load(saved(tmp_path, [row])).notes == ()
