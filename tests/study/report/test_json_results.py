"""results.json: what is in it is what the page shows, any JSON reader can read it, and the documented lines read it."""

import csv
import json
import math
import re
from pathlib import Path

import pytest
from _folders import study

from prefopt.study.comparison.compare import compare
from prefopt.study.report import write_report
from prefopt.study.report.text_tables import spread
from prefopt.support.wording import interval, number

ARMS = {"dpo": [0.0, 0.1, 0.2, 0.1], "rpo": [1.0, 1.12, 1.21, 1.09], "odd": [0.3, -0.2, 0.4, None]}


def strict(text: str):
    def no(constant: str):
        raise AssertionError(f"{constant} is no JSON")

    return json.loads(text, parse_constant=no)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    made = study(tmp_path_factory.mktemp("study"), ARMS)
    write_report(compare([made], question="Which?", confounds=["odd: x"], against="all"), made)
    return made


@pytest.fixture(scope="module")
def results(folder) -> dict:
    return strict((folder / "results.json").read_text())


def test_it_is_the_comparison(results):
    found = compare_again = results["metrics"]["gold"]
    assert (results["format"], results["version"]) == ("prefopt comparison", 1)
    assert results["arms"] == ["dpo", "odd", "rpo"] and results["seeds"] == [0, 1, 2, 3]
    assert compare_again["primary"] and found["prompts"] == 3 and found["rows"] == "test rows"
    assert found["arms"]["odd"]["values"] == {"0": 0.3, "1": -0.2, "2": 0.4, "3": None}
    assert [(one["arm"], one["other"]) for one in found["differences"]] == [
        ("odd", "dpo"),
        ("rpo", "dpo"),
        ("rpo", "odd"),
    ]
    assert results["question"] == "Which?" and results["confounds"] == ["odd: x"]
    assert any("odd, seed 3 failed" in note for note in results["notes"])
    failed = next(run for run in results["runs"] if run["state"] == "failed")
    assert failed["after"] == {} and failed["trouble"] == "ValueError: the loss is nan"


def test_its_numbers_are_those_of_the_page(folder, results):
    """Every mean, interval and p of every table, as the page prints them from the comparison."""
    page = re.sub(r"<[^>]+>", " ", (folder / "report.html").read_text())
    shown = 0
    for metric in results["metrics"].values():
        for arm in metric["arms"].values():
            if arm["mean"] is not None:
                assert number(arm["mean"]) in page
        for one in metric["differences"]:
            if one["other"] == results["baseline"] and None not in one["simultaneous"]:
                assert interval(*one["simultaneous"]) in page
                assert number(one["p_holm"]) in page
                shown += 1
    assert shown >= 4


def test_its_numbers_are_those_of_the_comparison(folder, results):
    found = compare([folder], against="all")
    for table in (found.primary, *found.others):
        metric = results["metrics"][table.metric]
        for row in table.rows:
            mean = metric["arms"][row.arm]
            assert (mean["mean"] or 0.0) == (row.mean.value if row.mean.seeds else 0.0)
            if row.mean.seeds > 1:
                assert mean["interval"] == [row.mean.low, row.mean.high]
                assert spread(row.mean) == f"{number(mean['mean'])} {interval(*mean['interval'])}"
        for pair, one in zip(table.pairs, metric["differences"], strict=True):
            assert one["claim"] == pair.claim
            if pair.crossed:
                assert one["other_prompts"]["simultaneous"] == list(pair.crossed.both)
            if math.isfinite(pair.difference.low):
                assert one["simultaneous"] == [pair.difference.low, pair.difference.high]
                assert one["p"] == pair.difference.p


def test_its_runs_are_those_of_the_csv(folder, results):
    with (folder / "results.csv").open() as file:
        rows = {(row["arm"], int(row["seed"])): row for row in csv.DictReader(file)}
    assert len(rows) == len(results["runs"])
    for run in results["runs"]:
        for name, value in run["after"].items():
            assert float(rows[run["arm"], run["seed"]][name]) == value


def test_the_lines_of_the_docs_read_it(folder, capsys, monkeypatch):
    page = Path(__file__).parents[3] / "docs" / "results.md"
    (lines,) = re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    monkeypatch.chdir(folder)
    exec(compile(lines, str(page), "exec"), {})
    printed = capsys.readouterr().out
    assert "rpo − dpo: 1.005 [0." in printed and "better" in printed


def test_every_key_is_documented(results):
    page = (Path(__file__).parents[3] / "docs" / "results.md").read_text(encoding="utf-8")
    metric = results["metrics"]["gold"]
    keys = {
        *results,
        *metric,
        *metric["arms"]["dpo"],
        *metric["differences"][0],
        *metric["differences"][0]["other_prompts"],
    }
    keys |= {*results["runs"][0], *results["wins"][0]}
    assert {key for key in keys if f"`{key}`" not in page} == set()
