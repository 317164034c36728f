"""What judges were told is kept, and no more is bought than the budget allows."""

import contextlib
import dataclasses
import json
import math
import multiprocessing
import os
import signal
import sqlite3
import time
from collections import Counter

import pytest

from prefopt import PrefoptError
from prefopt.feedback.judges import Answer, Backend, Question
from prefopt.feedback.judges.memory import Budget, Memory, Prices, Spent, memory_folder

LABELS = ("1", "10")
forked = pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")  # the children touch files only


class Counting:
    """Answers with what it was asked, says what that cost, and can fail after some answers."""

    def __init__(self, name="a", tokens=(10, 2), calls=1, fails_after=None):
        self.name, self.tokens, self.calls, self.fails_after = name, tokens, calls, fails_after
        self.asked = Counter()
        self.parts = []

    @property
    def identity(self):
        return {"kind": "counting", "model": self.name}

    def check(self):
        raise PrefoptError("no such model")

    def ask(self, questions):
        self.parts.append(len(questions))
        for i in reversed(range(len(questions))):
            if sum(self.asked.values()) == self.fails_after:
                raise PrefoptError("the server is gone")
            self.asked[questions[i]] += 1
            text = questions[i].turns[-1][1]
            logps = tuple(-math.inf if label == "10" else -0.1 for label in questions[i].labels) or None
            yield i, Answer(logps, None if logps else text.upper(), *self.tokens, self.calls)


def question(text, **fields):
    return Question((("user", text),), **fields)


def many(count):
    return [question(f"q{n}") for n in range(count)]


def test_an_answer_is_bought_once_and_comes_back_as_it_was(tmp_path):
    questions = [question("é \ud800 \U0001f600", max_tokens=3), question("b", labels=LABELS)]
    first, second = Counting(), Counting()
    said = Memory(first, tmp_path).answers(questions)
    memory = Memory(second, tmp_path)
    assert isinstance(memory, Backend) and memory.identity == second.identity
    assert memory.answers(questions) == said
    assert said[0].text == "É \ud800 \U0001f600" and said[1].logps == (-0.1, -math.inf)
    assert sum(first.asked.values()) == 2 and not second.asked
    assert memory.spent == Spent(hits=2)


@pytest.mark.parametrize(
    "changed",
    [{"start": "A"}, {"labels": LABELS}, {"max_tokens": 2}, {"temperature": 0.5}, {"seed": 1}],
    ids=lambda fields: next(iter(fields)),
)
def test_the_key_has_everything_in_it(tmp_path, changed):
    backend = Counting()
    Memory(backend, tmp_path).answers([question("a")])
    Memory(backend, tmp_path).answers([question("a", **changed)])
    Memory(Counting("b"), tmp_path).answers([question("a")])
    assert sum(backend.asked.values()) == 2
    assert len(rows(tmp_path)) == 3


def test_a_turn_is_not_its_neighbour(tmp_path):
    backend = Counting()
    one, two = Question((("user", "ab"), ("user", "c"))), Question((("user", "a"), ("user", "bc")))
    Memory(backend, tmp_path).answers([one, two])
    assert len(backend.asked) == 2


def test_what_is_asked_twice_in_one_breath_is_bought_once(tmp_path):
    backend = Counting()
    memory = Memory(backend, tmp_path)
    said = memory.answers([question("a"), question("b"), question("a"), question("a")])
    assert [answer.text for answer in said] == ["A", "B", "A", "A"]
    assert memory.spent == Spent(calls=2, prompt_tokens=20, completion_tokens=4, hits=2)
    assert set(backend.asked.values()) == {1}


def test_what_came_before_a_failure_is_kept(tmp_path):
    memory = Memory(Counting(fails_after=3), tmp_path)
    with pytest.raises(PrefoptError, match="the server is gone"):
        memory.answers(many(5))
    backend = Counting()
    again = Memory(backend, tmp_path)
    assert [answer.text for answer in again.answers(many(5))] == ["Q0", "Q1", "Q2", "Q3", "Q4"]
    assert sum(backend.asked.values()) == 2 and again.spent.hits == 3


def test_an_answer_is_on_disk_before_it_is_passed_on(tmp_path):
    asking = Memory(Counting(), tmp_path).ask(many(3))
    next(asking)
    assert len(rows(tmp_path)) == 1


def test_no_answer_is_not_kept(tmp_path):
    class Silent(Counting):
        def ask(self, questions):
            yield from ((i, Answer()) for i in range(len(questions)))

    assert Memory(Silent(), tmp_path).answers(many(2)) == [Answer()] * 2
    assert not rows(tmp_path)


def test_a_budget_in_calls_stops_and_a_new_one_goes_on(tmp_path):
    backend = Counting()
    memory = Memory(backend, tmp_path, Budget(calls=7))
    message = (
        r"budget of 7 calls is spent: 7 calls, 70 tokens read and 14 written, 0 answers from memory; 5 questions are left. "
        r"What was answered is kept in .*answers.sqlite: run the same again to go on from there with as much again, or raise"
    )
    with pytest.raises(PrefoptError, match=message):
        memory.answers(many(12))
    assert sum(backend.asked.values()) == 7 == len(rows(tmp_path))
    with pytest.raises(
        PrefoptError, match="5 questions are left"
    ):  # what is remembered is free, and nothing else is asked
        memory.answers(many(12))
    Memory(backend, tmp_path, Budget(calls=5)).answers(many(12))
    assert set(backend.asked.values()) == {1} and len(backend.asked) == 12


@pytest.mark.parametrize(("calls", "budget", "asked"), [(1, 100, 100), (2, 100, 50), (3, 100, 33), (1, 0, 0)])
def test_calls_are_counted_and_not_questions(tmp_path, calls, budget, asked):
    backend = Counting(calls=calls)
    memory = Memory(backend, tmp_path, Budget(calls=budget))
    with pytest.raises(PrefoptError, match="is spent"):
        memory.answers(many(200))
    assert sum(backend.asked.values()) == asked and memory.spent.calls == calls * asked


def test_a_budget_in_tokens_is_not_passed_and_is_used(tmp_path):
    backend = Counting(tokens=(40, 10))
    memory = Memory(backend, tmp_path, Budget(calls=1000, tokens=5020))
    with pytest.raises(PrefoptError, match="budget of 1000 calls and 5020 tokens is spent: 100 calls"):
        memory.answers(many(300))
    assert memory.spent.tokens == 5000
    assert backend.parts == [
        1,
        50,
        25,
        13,
        6,
        3,
        2,
    ]  # half of what is left, rounded up: 99.4, 49.4, 24.4, 11.4, 5.4, 2.4


def test_a_budget_in_tokens_needs_somebody_who_counts_them(tmp_path):
    memory = Memory(Counting(tokens=(0, 0)), tmp_path, Budget(tokens=100))
    with pytest.raises(PrefoptError, match="does not say how many it reads and writes: give a budget in calls"):
        memory.answers(many(5))


def test_without_a_budget_all_is_asked_together(tmp_path):
    backend = Counting()
    Memory(backend, tmp_path).answers(many(30))
    assert backend.parts == [30]


def test_cost_by_price():
    assert Spent(calls=2, prompt_tokens=3_000_000, completion_tokens=500_000).cost(Prices(0.15, 0.6)) == pytest.approx(
        0.75
    )


def test_check_is_the_backends(tmp_path):
    with pytest.raises(PrefoptError, match="no such model"):
        Memory(Counting(), tmp_path).check()
    assert not any(tmp_path.iterdir())


def test_the_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("PREFOPT_CACHE", str(tmp_path))
    assert memory_folder() == tmp_path / "judges"
    Memory(Counting()).answers(many(1))
    assert len(rows(tmp_path / "judges")) == 1
    monkeypatch.delenv("PREFOPT_CACHE")
    assert str(memory_folder()).endswith(".cache/prefopt/judges")


def test_a_file_that_cannot_be_used_is_refused_before_anything_is_bought(tmp_path):
    (tmp_path / "answers.sqlite").write_bytes(b"not a database, but long enough to look like one" * 100)
    backend = Counting()
    with pytest.raises(
        PrefoptError, match=r"cannot be kept in .*answers.sqlite: file is not a database.*PREFOPT_CACHE"
    ):
        Memory(backend, tmp_path).answers(many(1))
    assert not backend.asked


def slowly(folder, name, start):
    """In a process of its own: 40 questions, of which half are also the neighbours'."""
    memory = Memory(Counting(), folder)
    for n in range(start, start + 40):
        memory.answers([question(f"q{n}")])
    (folder / name).write_text("done")


@forked
def test_processes_share_it(tmp_path):
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=slowly, args=(tmp_path, f"p{n}", 20 * n)) for n in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(30)
    assert sorted(path.name for path in tmp_path.glob("p*")) == ["p0", "p1", "p2", "p3"]
    assert len(rows(tmp_path)) == 100


def forever(folder):
    memory = Memory(Counting(), folder)
    for n in range(10**9):
        memory.answers([question(f"q{n}")])


@forked
def test_a_kill_loses_nothing_that_was_answered(tmp_path):
    process = multiprocessing.get_context("fork").Process(target=forever, args=(tmp_path,))
    process.start()
    while not (tmp_path / "answers.sqlite").exists() or len(rows(tmp_path)) < 50:
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    kept = rows(tmp_path)
    backend = Counting()
    Memory(backend, tmp_path).answers(many(len(kept)))
    assert not backend.asked
    with contextlib.closing(sqlite3.connect(tmp_path / "answers.sqlite")) as disk:
        assert disk.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


def rows(folder):
    with contextlib.closing(sqlite3.connect(folder / "answers.sqlite", timeout=10)) as disk:
        try:
            found = disk.execute("SELECT judge, answer FROM answers").fetchall()
        except sqlite3.OperationalError:  # not there yet
            found = []
    assert all(json.loads(answer) for _, answer in found)
    return found


@pytest.mark.parametrize("parts", [[["one"], ["one"], ["two"]], [["one", "one"], ["one", "two"], ["two"]]])
def test_what_was_asked_ahead_is_no_hit(tmp_path, parts):
    plain, ahead = Memory(Counting(), tmp_path / "plain"), Memory(Counting(), tmp_path / "ahead")
    for part in parts:
        ahead.prefetch([question(text) for text in part])
    for memory in (plain, ahead):
        memory.answers([question(text) for part in parts for text in part])
    assert plain.spent == ahead.spent == Spent(2, 20, 4, hits=sum(map(len, parts)) - 2)
    assert plain.answers([question("two")]) == ahead.answers([question("two")])
    assert plain.spent == ahead.spent


def test_what_has_no_answer_ahead_is_not_paid_twice(tmp_path):
    class Silent(Counting):
        def ask(self, questions):
            for i, answer in super().ask(questions):
                yield i, dataclasses.replace(answer, logps=None, text=None)

    memory = Memory(Silent(), tmp_path)
    assert memory.prefetch(many(2)) == memory.answers(many(2))
    assert memory.spent.calls == 2
    memory.answers(many(1))
    assert memory.spent.calls == 3, "a call of its own asks again"


def test_what_failed_ahead_is_asked_again(tmp_path):
    memory = Memory(Counting(fails_after=1), tmp_path)
    with pytest.raises(PrefoptError, match="gone"):
        memory.prefetch([question("one"), question("two")])
    memory.backend = Counting()
    memory.answers([question("one"), question("two")])
    assert memory.spent.calls == 2 and not memory.spent.hits
