"""`prefopt evaluate RUN --add`: what is measured later is what the run itself would have measured, and nothing is overwritten."""

import json
import shutil

import pytest
from _tiny import tiny_model, tiny_pairs, tiny_recipe
from rich.console import Console

from prefopt import PrefoptError, load_recipe, run
from prefopt.cli.entry import main
from prefopt.policy import TransformersSampler
from prefopt.runs.adding import add
from prefopt.runs.additions import additions_of
from prefopt.runs.folder import RunFolder
from prefopt.runs.records import RunOfArm, read_run
from prefopt.study.comparison.compare import compare
from prefopt.study.report.text_tables import to_csv

QUIET = Console(quiet=True)
CODE = """
def gold(prompts, completions, rows):
    return [[float(len(text.split()) - 3 * ("w1" in text)) for text in texts] for texts in completions]

def topic(prompts, completions, rows):
    return [[float(row["topic"] == "films") + row["ended"][k] for k, _ in enumerate(texts)]
            for texts, row in zip(completions, rows, strict=True)]

def words(prompts, completions, rows):
    return float(sum(len(text.split()) for texts in completions for text in texts))
"""
ADDED = {
    "evaluate.gold": "m.py:gold",
    "evaluate.metrics.topic": "m.py:topic",
    "evaluate.metrics.words": "{name: m.py:words, over: corpus}",
    "evaluate.sets.hard": "{data: hard.jsonl}",
}
OVERRIDES = [f"{key}={value}" for key, value in ADDED.items()]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    home = tmp_path_factory.mktemp("home")
    tiny_model(home / "lm")
    pairs = [json.loads(line) for line in tiny_pairs(home / "pairs.jsonl", rows=80).read_text().splitlines()]
    for i, pair in enumerate(pairs):
        pair["topic"] = ["films", "books"][i % 2]
    hard = [{"prompt": f"w{i} w50 w51", "chosen": " w1", "rejected": " w2", "topic": "films"} for i in range(6)]
    for name, rows in (("pairs", pairs), ("hard", hard), ("easy", hard[:4])):
        (home / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (home / "m.py").write_text(CODE)
    return home


@pytest.fixture(autouse=True)
def here(home, monkeypatch):
    monkeypatch.chdir(home)


@pytest.fixture(scope="module")
def runs(home, tmp_path_factory):
    """A run that measured little, and one that measured everything from the start."""
    folder = tmp_path_factory.mktemp("runs")
    evaluate = {"prompts": 5, "completions": 2, "sampling": {"max_tokens": 4}, "by": "topic"}
    evaluate["sets"] = {"easy": {"data": str(home / "easy.jsonl")}}
    file = tiny_recipe(folder, home / "lm", home / "pairs.jsonl", evaluate=json.dumps(evaluate))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        little = run(load_recipe(file), folder=folder / "little-seed0", console=QUIET)
        whole = run(load_recipe(file, OVERRIDES), folder=folder / "whole-seed0", console=QUIET)
    return little.folder, whole.folder


@pytest.fixture
def little(runs, tmp_path):
    return shutil.copytree(runs[0], tmp_path / "little-seed0")


def record(folder):
    return read_run(RunOfArm("arm", 0, folder))


def test_what_is_added_is_what_the_run_would_have_measured(little, runs):
    before = {file: file.read_bytes() for file in little.rglob("*") if file.is_file()}
    added = add(additions_of(little, OVERRIDES), QUIET)
    assert all(file.read_bytes() == content for file, content in before.items())  # nothing is changed
    assert {file.name for file in (little / "measured").iterdir()} == {
        "gold.json",
        "topic.json",
        "words.json",
        "set-hard.json",
    }
    later, whole = record(little), record(runs[1])
    for mine, other in ((later.after, whole.after), (later.before, whole.before)):
        assert mine.keys() == other.keys() > {"gold", "easy/gold", "hard/gold", "gold[topic=films]", "words"}
        assert mine == pytest.approx(other, rel=1e-5, abs=1e-6)
    kept = RunFolder(runs[1]).evaluation("test", 4)
    for name in ("gold", "topic", "words", "gold[topic=books]"):
        assert added.estimates()[name] == kept.estimates()[name], name
    assert [sample["gold"] for sample in later.evaluation.samples] == [sample["gold"] for sample in kept.samples]


def test_metrics_of_samples_take_no_sampling(little, monkeypatch):
    monkeypatch.setattr(TransformersSampler, "__call__", None)
    add(additions_of(little, ["evaluate.gold=m.py:gold"]), QUIET)
    assert "gold" in record(little).after


def test_how_it_was_measured_is_said(little):
    add(additions_of(little, ["evaluate.gold=m.py:gold"]), QUIET)
    made = RunFolder(little).measured()["gold"]["made"]
    assert made["overrides"] == ["evaluate.gold=m.py:gold"] and any("m.py:gold" in name for name in made["plugins"])
    assert made["started"] and made["versions"]["torch"]


def test_reports_and_tables_have_it(little, runs, tmp_path):
    other = shutil.copytree(runs[0], tmp_path / "other-seed0")
    for folder in (little, other):
        add(
            additions_of(
                folder, ["evaluate.gold=m.py:gold", "evaluate.metrics.words={name: m.py:words, over: corpus}"]
            ),
            QUIET,
        )
    comparison = compare([RunOfArm("little", 0, little), RunOfArm("other", 0, other)])
    assert comparison.metric == "gold" and comparison.wins
    assert {"gold", "easy/gold", "words"} <= set(to_csv(comparison).splitlines()[0].split(","))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ([], "--add wants something to measure"),
        (["evaluate.prompts=3"], "evaluate.prompts would change how it was measured"),
        (["evaluate.gold=m.py:gold", "objective.0.beta=3"], "objective.* would change how it was measured"),
        (["evaluate.sets.easy.limit=2"], r"evaluate\.sets\.easy\.limit would change"),
        (["evaluate.sets.train={data: hard.jsonl}"], "sets: train is the name of a part"),
    ],
)
def test_what_would_change_or_add_nothing_is_refused(little, overrides, message):
    with pytest.raises(PrefoptError, match=message):
        additions_of(little, overrides)
    assert not (little / "measured").exists()


def test_nothing_is_added_twice(little, runs):
    add(additions_of(little, ["evaluate.metrics.topic=m.py:topic"]), QUIET)
    with pytest.raises(PrefoptError, match=r"topic is measured already, in .*measured/topic\.json"):
        additions_of(little, ["evaluate.metrics.topic=m.py:gold"])
    with pytest.raises(PrefoptError, match=r"has measured evaluate\.gold already"):
        additions_of(runs[1], ["evaluate.gold=m.py:gold"])


def test_other_data_are_refused(little, home):
    rows = (home / "pairs.jsonl").read_text()
    try:
        (home / "pairs.jsonl").write_text(rows.replace("w1", "w3"))
        with pytest.raises(PrefoptError, match="rows are not those that the run began with"):
            add(additions_of(little, ["evaluate.gold=m.py:gold"]), QUIET)
    finally:
        (home / "pairs.jsonl").write_text(rows)
    assert not (little / "measured").exists()


def test_a_run_that_is_not_over_is_told_how_to_go_on(little):
    (little / "summary.json").unlink()
    with pytest.raises(PrefoptError, match=r"is not finished: prefopt run .* --resume"):
        additions_of(little, ["evaluate.gold=m.py:gold"])


def test_all_runs_of_a_folder_and_one_that_was_interrupted_is_gone_on_with(runs, tmp_path, capsys):
    folders = [shutil.copytree(runs[0], tmp_path / "all" / f"{arm}-seed0") for arm in ("one", "two")]
    add(additions_of(folders[0], ["evaluate.metrics.topic=m.py:topic"]), QUIET)
    command = ["evaluate", str(tmp_path / "all"), "evaluate.metrics.topic=m.py:topic", "--add"]
    main(command)
    shown = capsys.readouterr()
    assert "two-seed0: added" in shown.out and "one-seed0: added" not in shown.out
    assert "left out: topic is measured already" in shown.err
    assert record(folders[1]).after["topic"] == pytest.approx(record(folders[0]).after["topic"])
    with pytest.raises(SystemExit) as ended:
        main(command)
    assert ended.value.code == 2 and "topic is measured already" in capsys.readouterr().err


@pytest.mark.parametrize("more", [["--out", "x.json"], []])
def test_a_recipe_and_a_file_to_write_are_refused(home, runs, more, capsys):
    target = str(runs[0]) if more else "recipe.yaml"
    with pytest.raises(SystemExit) as ended:
        main(["evaluate", target, "evaluate.gold=m.py:gold", "--add", *more])
    assert ended.value.code == 2 and "--add" in capsys.readouterr().err
