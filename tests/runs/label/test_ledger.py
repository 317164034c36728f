"""The files of a labelling after any kill."""

import json

import pytest

from prefopt.runs.label.ledger import Ledger
from prefopt.support.errors import PrefoptError


def row(number, *scores, **more):
    return {"prompt": f"p{number} ψ\u2028", "scores": list(scores), "provenance": {"row": number}, **more}


@pytest.fixture
def ledger(tmp_path):
    return Ledger(tmp_path)


def test_nothing_yet(ledger):
    assert (ledger.repair(), ledger.done(), ledger.spent(), ledger.counts()["prompts"]) == (0, set(), {}, 0)


def test_rows_go_where_they_belong_and_are_counted(ledger):
    ledger.add([row(0, 1.0, 2.0, ended=[True, False]), row(1, None, 2.0), row(2, 3.0, 3.0, None)])
    assert ledger.done() == {0, 1, 2}
    assert [json.loads(line)["provenance"]["row"] for line in ledger.missing.read_text().split("\n")[:-1]] == [1]
    expected = {
        "prompts": 2,
        "prompts_missing": 1,
        "completions": 4,
        "completions_missing": 3,
        "not_ended": 1,
        "tied": 1,
    }
    assert ledger.counts() == expected


@pytest.mark.parametrize("name", ["data", "missing", "calls"])
def test_cut_anywhere_it_holds_the_lines_that_were_whole(ledger, name):
    """Every place at which a kill can end the file."""
    ledger.add([row(0, 1.0), row(1, 2.0), row(2, None), row(3, None)])
    ledger.spend(2, {"calls": 2})
    ledger.spend(2, {"calls": 3})
    file = getattr(ledger, name)
    content = file.read_bytes()
    for end in range(len(content) + 1):
        file.write_bytes(content[:end])
        whole = content[:end].count(b"\n")
        assert ledger.repair() == (not content[:end].endswith(b"\n") and end > 0)
        assert file.read_bytes().count(b"\n") == whole
        ledger.done(), ledger.spent(), ledger.counts()
    file.write_bytes(content[: content.index(b"\n") + 5])
    ledger.repair()
    ledger.add([row(9, 1.0), row(8, None)])
    assert {8, 9} <= ledger.done(), "what is added after a torn line is whole"


def test_cost_adds_up(ledger):
    for spent in ({"calls": 2, "tokens": 30.5}, {"calls": 1}):
        ledger.spend(4, spent)
    assert ledger.spent() == {"calls": 3, "tokens": 30.5}


def test_half_a_character_survives(ledger):
    ledger.add([row(0, 1.0, text="\ud800")])
    assert json.loads(ledger.data.read_text())["text"] == "\ud800"


def test_a_damaged_line_is_named(ledger):
    ledger.add([row(0, 1.0), row(1, 1.0)])
    ledger.data.write_text(ledger.data.read_text().replace('"scores"', "scores", 1))
    with pytest.raises(PrefoptError, match=r"data.jsonl:1: not a line that a labelling wrote"):
        ledger.done()


def test_what_was_spent_is_read_once_however_often_it_is_asked(tmp_path, monkeypatch):
    """A labelling asks after each batch, and must not read its whole record each time."""
    from prefopt.runs.label import ledger as module

    parsed = []
    loads = module.json.loads
    monkeypatch.setattr(module.json, "loads", lambda line: parsed.append(line) or loads(line))
    ledger = module.Ledger(tmp_path)
    for batch in range(20):
        ledger.spend(4, {"calls": 2, "money": 0.25})
        assert ledger.spent() == {"calls": 2 * (batch + 1), "money": 0.25 * (batch + 1)}
    assert len(parsed) == 20
    assert module.Ledger(tmp_path).spent() == {"calls": 40, "money": 5.0}


@pytest.mark.parametrize("name", ["data", "missing", "calls"])
@pytest.mark.parametrize(
    "line", ['{"prompt": "x"}', "5", "[1]", "null", '{"provenance": 3, "scores": 3, "spent": 3}', "\xff"]
)
def test_a_line_of_somebody_else_is_named(ledger, name, line):
    ledger.add([row(0, 1.0), row(1, None)])
    ledger.spend(1, {"calls": 1})
    file = getattr(ledger, name)
    file.write_bytes(file.read_bytes() + line.encode("latin-1") + b"\n")
    read = ledger.spent if name == "calls" else ledger.done
    with pytest.raises(PrefoptError, match=rf"{name}.jsonl:2: not a line that a labelling wrote .*restore the file"):
        read()
    if name != "calls":
        with pytest.raises(PrefoptError, match=rf"{name}.jsonl:2"):
            ledger.counts()
