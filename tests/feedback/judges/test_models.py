"""Another model behind one address does not get the old answers, and is noticed."""

import contextlib
import json
import logging
import sqlite3

import pytest
from _server import Loopback

from prefopt.feedback.judges import Answer, Question
from prefopt.feedback.judges.memory import Budget, Memory
from prefopt.feedback.judges.server import Server

ONE = Question((("user", "which?"),), max_tokens=9)
TWO = Question((("user", "and now?"),), max_tokens=9)


@pytest.fixture
def loopback():
    with Loopback().running() as server:
        yield server


def listing(**entry):
    return {"object": "list", "data": [{"id": "m", "object": "model", **entry}]}


CHANGES = {
    "root": ({"listing": listing(root="v1")}, {"listing": listing(root="v2")}),
    "size": ({"listing": listing(meta={"n_params": 1})}, {"listing": listing(meta={"n_params": 2})}),
    "model of the reply": ({"says": {"model": "m-2026-01"}}, {"says": {"model": "m-2026-02"}}),
    "fingerprint": ({"says": {"system_fingerprint": "fp_1"}}, {"says": {"system_fingerprint": "fp_2"}}),
    "listed at all": ({}, {"listing": listing(root="v2")}),
}


def serve(loopback, says, text):
    loopback.listing, loopback.says = says.get("listing"), dict(says.get("says", {}))
    message = {"role": "assistant", "content": text}
    loopback.says["choices"] = [{"index": 0, "finish_reason": "stop", "message": message}]


@pytest.mark.parametrize("name", CHANGES)
@pytest.mark.parametrize("fresh", [True, False], ids=["new process", "same object"])
def test_another_model_is_asked_anew_and_noticed(loopback, tmp_path, caplog, name, fresh):
    if not fresh and name in ("model of the reply", "fingerprint"):
        pytest.skip("within a process, it is noticed with the next question that is asked")
    before, after = CHANGES[name]
    memory = Memory(Server("m", loopback.url), tmp_path)
    serve(loopback, before, "3")
    assert memory.answers([ONE])[0].text == "3" and "another model" not in caplog.text
    serve(loopback, after, "9")
    memory = Memory(Server("m", loopback.url), tmp_path) if fresh else memory
    assert memory.answers([ONE])[0].text == "9"
    assert caplog.text.count("another model answers behind the judge's server") == 1


def test_the_same_model_gets_its_answers_and_is_asked_one_question(loopback, tmp_path, caplog):
    serve(loopback, {"listing": listing(root="v1", created=1)}, "3")
    first = Memory(Server("m", loopback.url), tmp_path).answers([ONE, TWO])
    serve(loopback, {"listing": listing(root="v1", created=2)}, "9")
    memory = Memory(Server("m", loopback.url), tmp_path)
    assert [a.text for a in memory.answers([ONE, TWO])] == [a.text for a in first] == ["3", "3"]
    memory.answers([ONE, TWO])
    assert memory.spent.calls == 1 and len(loopback.asked) == 3
    assert "another model" not in caplog.text


def test_a_model_that_comes_back_gets_its_old_answers(loopback, tmp_path):
    for root, text in (("v1", "3"), ("v2", "9")):
        serve(loopback, {"listing": listing(root=root)}, text)
        Memory(Server("m", loopback.url), tmp_path).answers([ONE, TWO])
    serve(loopback, {"listing": listing(root="v1")}, "5")
    assert [a.text for a in Memory(Server("m", loopback.url), tmp_path).answers([ONE, TWO])] == ["3", "3"]


def test_within_a_process_a_reply_tells(loopback, tmp_path, caplog):
    memory = Memory(Server("m", loopback.url), tmp_path)
    serve(loopback, {"says": {"model": "m-1"}}, "3")
    memory.answers([ONE])
    serve(loopback, {"says": {"model": "m-2"}}, "9")
    memory.answers([TWO])
    assert "model m-2" in caplog.text and "before it was model m-1" in caplog.text
    assert len(memory.models.all) == 2


def test_several_builds_of_one_hosted_model_are_all_remembered(loopback, tmp_path):
    memory = Memory(Server("m", loopback.url), tmp_path)
    for build, question in (("fp_1", ONE), ("fp_2", TWO)):
        serve(loopback, {"says": {"system_fingerprint": build}}, build)
        memory.answers([question])
    assert [a.text for a in memory.answers([ONE, TWO])] == ["fp_1", "fp_2"] and memory.spent.calls == 2


def test_a_server_that_is_not_there_leaves_what_is_remembered(tmp_path, caplog):
    with Loopback().running() as server:
        server.says = {"model": "m-1"}
        Memory(Server("m", server.url), tmp_path).answers([ONE])
    memory = Memory(Server("m", server.url, retries=0), tmp_path)
    assert memory.answers([ONE])[0].text == "said: which?" and memory.spent.hits == 1
    assert "is not there; remembered answers of model m-1 are used" in caplog.text


def test_a_spent_budget_leaves_what_is_remembered(loopback, tmp_path):
    Memory(Server("m", loopback.url), tmp_path).answers([ONE])
    assert Memory(Server("m", loopback.url), tmp_path, Budget(calls=1)).answers([ONE])[0].text == "said: which?"


def old_row(folder, question, answer):
    """As the previous version kept an answer: under the question alone, without how it ended."""
    from prefopt.feedback.judges.memory import _key

    memory = Memory(Server("m", "http://127.0.0.1:1/v1"), folder)
    with contextlib.closing(memory._open()) as disk:
        disk.execute(
            "INSERT INTO answers VALUES (?, ?, ?, ?)", (_key(memory.identity, question), "m", json.dumps(answer), "")
        )


OLD = {"logps": None, "text": "7", "prompt_tokens": 1, "completion_tokens": 1, "calls": 1}


@pytest.mark.parametrize(
    "change",
    [{"text": ""}, {"text": "  "}, {"text": "<think> let me"}, {"text": "7", "completion_tokens": 9}, {"text": None},
     {"text": None, "logps": [2.0]}, {"text": None, "logps": [float("nan")]}],
)  # fmt: skip
def test_what_an_earlier_version_kept_without_being_an_answer_is_asked_anew(tmp_path, change):
    old_row(tmp_path, ONE, OLD | change)
    memory = Memory(Server("m", "http://127.0.0.1:1/v1"), tmp_path)
    with contextlib.closing(memory._open()) as disk:
        from prefopt.feedback.judges.memory import _key

        key = _key(memory.identity, ONE)
        assert memory._recall(disk, key, ONE) is None
        assert memory._keep(disk, key, ONE, Answer(text="8")).text == "8"


def test_good_answers_of_an_earlier_version_are_used_and_that_is_said(tmp_path, caplog):
    caplog.set_level(logging.WARNING)
    old_row(tmp_path, ONE, OLD)
    memory = Memory(Server("m", "http://127.0.0.1:1/v1", retries=0), tmp_path)
    assert memory.answers([ONE])[0].text == "7"
    assert "earlier version of prefopt" in caplog.text


def test_a_damaged_row_is_asked_anew(loopback, tmp_path):
    memory = Memory(Server("m", loopback.url), tmp_path)
    memory.answers([ONE])
    with sqlite3.connect(memory.file) as disk:
        disk.execute("UPDATE answers SET answer = '{oops'")
    assert memory.answers([ONE])[0].text == "said: which?"


def test_texts_that_are_the_same_at_a_temperature_are_counted_and_said(loopback, tmp_path, caplog):
    memory = Memory(Server("m", loopback.url), tmp_path)
    questions = [Question((("user", "which?"),), max_tokens=9, temperature=1.0, seed=seed) for seed in range(21)]
    memory.answers(questions)
    assert memory.redrawn == {"drawn": 20, "same": 20}
    assert "same text each time, 20 of 20, at temperature 1" in caplog.text


def test_a_manifest_says_which_model_a_server_lists(loopback):
    from prefopt.feedback import judge_records
    from prefopt.feedback.judges import Judge

    loopback.listing = listing(root="v1")
    judge = Judge({"question": "{{ completion }}"}, "generative", server={"model": "m", "base_url": loopback.url})
    (said,) = judge_records(judge)
    assert said["model"] == "m" and json.loads(said["listed"])["root"] == "v1"


def test_a_report_says_that_a_server_takes_no_notice_of_the_temperature(loopback, tmp_path, caplog):
    from prefopt import recipe
    from prefopt.evaluation.judges.report import JudgeRecipe, report

    serve(loopback, {}, "7")
    rows = [{"prompt": f"p{i}", "completions": [f"a{i}"], "ratings": [[1, -1 + 2 * (i % 2)]]} for i in range(6)]
    (tmp_path / "d.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    judge = {"name": "Judge", "rubric": {"question": "{{ completion }}"}, "mode": "generative", "temperature": 1.0,
             "server": {"model": "m", "base_url": loopback.url}}  # fmt: skip
    tree = {"judge": judge, "source": {"data": str(tmp_path / "d.jsonl")}, "threads": 1}
    made = report(recipe.checked(JudgeRecipe, tree, "r"))
    assert made.numbers["redrawn"] == made.numbers["redrawn_same"] == 6
    assert "`consistency` then says nothing of the judge" in caplog.text
