"""Exports of Argilla and Label Studio: votes of every annotator where the values say of what, refusals where they do not."""

import json

import pytest

from prefopt.data.loading import load
from prefopt.support.errors import PrefoptError

FIELDS = {"instruction": "q", "response1": "a", "response2": "b"}
DATA = {"prompt": "q", "answer1": "a", "answer2": "b"}
ITEMS = [{"id": name, "title": name.upper(), "body": f"the {name}"} for name in ("x", "y", "z")]


def read(tmp_path, rows):
    """The examples of a JSON file, which is what both tools write, and what is said of how they were read."""
    file = tmp_path / "export.json"
    file.write_text(json.dumps(rows))
    return load(file)


def record(responses, fields=FIELDS, **more):
    return {"id": "1", "fields": fields, "metadata": {}, "suggestions": {}, "responses": responses, **more}


def answers(*values):
    return [{"value": value, "user_id": f"user-{number}"} for number, value in enumerate(values)]


def ranked(*names_and_ranks):
    return [{"value": name, "rank": rank} for name, rank in names_and_ranks]


def task(*annotations, data=DATA):
    return {"id": 1, "data": data, "annotations": list(annotations), "predictions": []}


def annotation(*results, **more):
    return {"completed_by": 1, "result": [{"id": "r", "origin": "manual", **one} for one in results], **more}


def chose(side, control="comparison", of=None):
    return {"from_name": control, "to_name": of or control, "type": "pairwise", "value": {"selected": side}}


def chose_of(choice):
    return {"from_name": "best", "to_name": "prompt", "type": "choices", "value": {"choices": [choice]}}


def ranker(order, name="rank"):
    return {"from_name": "rank", "to_name": "list", "type": "ranker", "value": {"ranker": {name: order}}}


def rating(of, value):
    return {"from_name": f"stars-{of}", "to_name": of, "type": "rating", "value": {"rating": value}}


VOTED = [
    ("labels", record({"best": answers("response1", "response2", "response1", "tie")}), 0.625),
    ("ranks", record({"order": answers(ranked(("response1", 2), ("response2", 1)))}), 0.0),
    ("tied ranks", record({"order": answers(ranked(("response1", 1), ("response2", 1)))}), 0.5),
    ("beside a comment", record({"best": answers("response1"), "why": answers("it is short")}), 1.0),
    ("pairwise", task(annotation(chose("left")), annotation(chose("right")), annotation(chose("left"))), 2 / 3),
    ("a cancelled annotation", task(annotation(chose("left")), annotation(chose("right"), was_cancelled=True)), 1.0),
    ("sides that are named", task(annotation(chose("left", of="answer2,answer1"))), 0.0),
    ("choices by side", task(annotation(chose_of("right"))), 0.0),
    ("choices by name", task(annotation(chose_of("answer1")), annotation(chose_of("tie"))), 0.75),
    ("columns that nobody saw", task(annotation(chose("left")), data={**DATA, "batch": "june"}), 1.0),
]


@pytest.mark.parametrize(("row", "first_wins"), [case[1:] for case in VOTED], ids=[case[0] for case in VOTED])
def test_the_votes_of_all_annotators_are_the_preference(tmp_path, row, first_wins):
    [example] = read(tmp_path, [row]).rows
    swapped = example.completions[0][0]["content"] == "b"
    assert example.prompt == ({"role": "user", "content": "q"},)
    assert sorted(completion[0]["content"] for completion in example.completions) == ["a", "b"]
    assert example.preference[swapped][not swapped] == pytest.approx(first_wins)
    assert example.scores is None


def test_rankings_of_several_annotators_are_votes_on_every_pair(tmp_path):
    data = {"prompt": "q", "items": ITEMS}
    row = task(annotation(ranker(["y", "z", "x"])), annotation(ranker(["y", "x", "z"])), data=data)
    [example] = read(tmp_path, [row]).rows
    assert [completion[0]["content"] for completion in example.completions] == ["the x", "the y", "the z"]
    assert example.preference == ((0.5, 0, 0.5), (1, 0.5, 1), (0.5, 0, 0.5))
    fields = {"q": "q", "a-1": "x", "a-2": "y", "a-3": "z"}
    first, second = ranked(("a-1", 3), ("a-2", 1), ("a-3", 2)), ranked(("a-1", 2), ("a-2", 1), ("a-3", 3))
    [same] = read(tmp_path, [record({"order": answers(first, second)}, fields)]).rows
    assert same.preference == example.preference


def test_ratings_are_mean_scores(tmp_path):
    fields = {"instruction": "q", "response": "a"}
    [one] = read(tmp_path, [record({"stars": answers(4, 5)}, fields)]).rows
    assert (one.completions[0][0]["content"], one.scores) == ("a", (4.5,))
    row = task(annotation(rating("answer1", 2), rating("answer2", 5)), annotation(rating("answer1", 3)))
    [pair] = read(tmp_path, [row]).rows
    assert pair.scores == (2.5, 5.0)


def test_conversations_stay_turns(tmp_path):
    talk = [{"role": "system", "content": "be kind"}, {"role": "user", "content": "q"}]
    [example] = read(tmp_path, [record({"best": answers("response2")}, {**FIELDS, "instruction": talk})]).rows
    assert example.prompt == tuple(talk)


def test_what_the_server_answers_is_read_with_its_ranks_and_without_what_was_not_submitted(tmp_path):
    """What GET /api/v1/datasets/ID/records?include=responses has; the SDK's export has neither ranks nor status."""
    by_user = [
        {
            "status": status,
            "user_id": "u",
            "values": {"order": {"value": ranked(("response1", one), ("response2", two))}},
        }
        for status, one, two in (("submitted", 2, 1), ("discarded", 1, 2), ("draft", 1, 2))
    ]
    [example] = read(tmp_path, [record(by_user)]).rows
    assert example.preference[0][1] == 0


def test_what_has_no_answer_yet_is_left_out_and_counted(tmp_path):
    done = record({"best": answers("response1")})
    rows, notes = read(tmp_path, [record({}), done, record([])])
    assert (len(rows), "2 rows left out: without a response" in notes) == (1, True)
    rows, notes = read(tmp_path, [task(), task(annotation(chose("left"))), task(annotation())])
    assert (len(rows), "2 rows left out: without an annotation" in notes) == (1, True)


REFUSED = [
    ("a ranking without ranks", record({"o": answers(["response1", "response2"])}), r"'o' has no ranks.*include=responses"),
    ("options that are no fields", record({"o": answers(ranked(("A", 1), ("B", 2)))}), r"ranks \['A', 'B'\].*no field"),
    ("two questions", record({"best": answers("response1"), "safest": answers("response2")}), r"\['best', 'safest'\] all"),
    ("a context beside the prompt", record({"b": answers("response1")}, {**FIELDS, "context": "c"}), "one other must be"),
    ("a rating of one of two", record({"stars": answers(3)}), "'stars' rates one answer"),
    ("only comments", record({"why": answers("it is short")}), r"none of the questions \['why'\]"),
    ("one answer", record({"b": answers("response1")}, {"q": "", "response1": ""}), r"answers are \[\]"),
    ("no value", record({"b": [{"user_id": "u"}]}), "must have a 'value'"),
    ("buckets", task(annotation(ranker(["x"], "good")), data={"prompt": "q", "items": ITEMS}), "sorts into buckets"),
    ("an item that is not ranked", task(annotation(ranker(["x", "y"])), data={"prompt": "q", "items": ITEMS}), "the items are"),
    ("sides of what", task(annotation(chose("left")), data={"prompt": "q", "old": "", "new": ""}), "'comparison' chose"),
    ("no prompt", task(annotation(chose("left")), data={"text1": "a", "text2": "b"}), "one other must be the prompt"),
    ("two controls", task(annotation(chose("left"), chose("right", "safer"))), r"\['comparison', 'safer'\] all"),
    ("regions", task(annotation(chose("left"), chose("right"))), "several results in one annotation"),
    ("two choices", task(annotation({**chose_of("left"), "value": {"choices": ["left", "right"]}})), "must have one choice"),
]  # fmt: skip


@pytest.mark.parametrize(("row", "message"), [case[1:] for case in REFUSED], ids=[case[0] for case in REFUSED])
def test_what_cannot_be_known_is_refused_with_its_row(tmp_path, row, message):
    with pytest.raises(PrefoptError, match=message) as refused:
        read(tmp_path, [row])
    assert "export.json" in str(refused.value)
