"""Further held-out sets, and metrics by a column, from the recipe to the comparison of runs."""

import json

import pytest
import yaml
from _tiny import tiny_model, tiny_pairs, tiny_recipe
from rich.console import Console

from prefopt import PrefoptError, load_recipe, run
from prefopt.evaluation.evaluator import Evaluator
from prefopt.runs import inspecting
from prefopt.runs.folder import RunFolder
from prefopt.runs.held_out_metrics import held_out_metrics
from prefopt.runs.planning import plan
from prefopt.runs.records import RunOfArm, read_run, rows_of
from prefopt.runs.results import show_result
from prefopt.study.comparison.compare import compare
from prefopt.study.question import check_question
from prefopt.study.report.text_tables import to_csv
from prefopt.study.spec import Study

GOLD = """
def gold(prompts, completions, rows):
    return [[float(len(text.split()) + 10 * row.get("hard", 0)) for text in texts]
            for texts, row in zip(completions, rows, strict=True)]
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    home = tmp_path_factory.mktemp("home")
    tiny_model(home / "lm")
    (home / "rule.py").write_text(GOLD)
    pairs = [json.loads(line) for line in tiny_pairs(home / "pairs.jsonl", rows=100).read_text().splitlines()]
    for i, pair in enumerate(pairs):
        pair["topic"] = ["films", "books"][i % 2]
    hard = [{"prompt": f"w{i} w50 w51 w52", "chosen": " w1", "rejected": " w2", "hard": 1} for i in range(7)]
    hard.append({"prompt": pairs[0]["prompt"], "chosen": " w1", "rejected": " w2", "hard": 1})
    for name, rows in (("pairs", pairs), ("hard", hard)):
        (home / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return home


@pytest.fixture(scope="module")
def recipe_file(home):
    evaluate = {
        "prompts": 6,
        "sampling": {"max_tokens": 4},
        "gold": f"{home}/rule.py:gold",
        "by": "topic",
        "sets": {"hard": {"data": str(home / "hard.jsonl")}},
    }
    return tiny_recipe(home, home / "lm", home / "pairs.jsonl", evaluate=json.dumps(evaluate))


@pytest.fixture(scope="module")
def result(recipe_file, tmp_path_factory):
    return run(load_recipe(recipe_file), folder=tmp_path_factory.mktemp("runs") / "run")


def test_a_set_is_measured_at_start_and_end_by_the_same_metrics(result):
    folder = RunFolder(result.folder)
    for step, measured in ((0, result.before), (4, result.after)):
        kept = folder.evaluation("hard", step).estimates()
        assert {f"hard/{name}" for name in kept} == {name for name in measured if name.startswith("hard/")}
        assert kept["gold"].value == measured["hard/gold"].value > 10 > measured["gold"].value
    assert {"hard/gold", "hard/nll", "hard/accuracy", "gold[topic=films]"} <= result.change.keys()
    assert result.sets == {"hard": 8} and len(folder.evaluation("hard", 4).samples) == 6
    summary = folder.summary()
    assert summary["evaluated_on"]["sets"] == {"hard": 8}
    assert summary["after"]["hard/gold"]["prompts"] == 6 and "hard/distinct_1" in summary["after"]
    assert folder.manifest()["data"]["hard"]["rows"] == 8
    assert any("1 of 8 rows of evaluate.sets.hard have a prompt" in one for one in folder.manifest()["warnings"])


def test_the_values_of_a_column_divide_the_rows(result):
    parts = [result.after[f"gold[topic={topic}]"] for topic in ("films", "books")]
    whole = result.after["gold"]
    assert sum(part.prompts for part in parts) == whole.prompts == 6
    mean = sum(part.value * part.prompts for part in parts) / 6
    assert mean == pytest.approx(whole.value) and "hard/gold[topic=films]" not in result.after


def test_what_is_measured_was_said_before(result, recipe_file):
    settings = load_recipe(recipe_file)
    planned = plan(settings)
    names = held_out_metrics(settings, planned.needs.rewards, planned.data.test, planned.sets)
    assert sorted(names) == sorted({**result.after, **result.numbers})
    study = Study(name="s", recipe="r", arms={"a": {}, "b": {}}, metric="hard/gold[topic=films]")
    asked = {
        "hard/gold": None,
        "gold[topic=books]": None,
        "hard/gold_at_kl": "sets are measured at start and end alone",
    }
    asked["gold[topic=flms]"] = r"Did you mean 'gold\[topic=films\]'"
    asked["easy/gold"] = r"It is measured by `evaluate.sets: \{easy: \{data: …\}\}`, and evaluate.gold"
    for metric, refusal in asked.items():
        question = study.model_copy(update={"metric": metric})
        if refusal is None:
            check_question(question, {"a": names})
        else:
            with pytest.raises(PrefoptError, match=refusal):
                check_question(question, {"a": names})


def test_comparisons_and_tables_have_them(result, recipe_file, tmp_path):
    other = run(load_recipe(recipe_file, ["objective=IPO"]), folder=tmp_path / "other-seed0").folder
    runs = [RunOfArm("DPO", 0, result.folder), RunOfArm("IPO", 0, other)]
    comparison = compare(runs, metric="hard/gold")
    assert comparison.primary.rows[0].values == {0: result.after["hard/gold"].value}
    assert (
        comparison.rows_of("hard/gold") == "rows of the set hard (hard.jsonl)"
        and rows_of(comparison.runs) == "test rows"
    )
    assert comparison.primary.rows[1].over_prompts is None or comparison.primary.rows[1].over_prompts.prompts == 6
    head = to_csv(comparison).splitlines()[0]
    assert "hard/gold" in head and "gold[topic=films]" in head
    record = read_run(runs[0])
    assert record.measured("hard/gold") == ([0, 4], [result.before["hard/gold"].value, result.after["hard/gold"].value])
    assert [kl for kl, _ in record.path("hard/gold")] == record.measured("hard/kl")[1]


def test_a_person_sees_the_part_first_and_then_each_set(result):
    console = Console(width=120, record=True, quiet=False, file=None)
    with console.capture() as shown:
        show_result(console, result, 0.95)
    lines = shown.get().splitlines()
    assert lines[0].startswith(f"{result.rows} held-out rows (test), 8 (hard)")
    names = [line.split()[0] for line in lines[2:] if line.strip()]
    assert names.index("gold") == 0 and names.index("hard/gold") > max(names.index("nll"), names.index("length"))


def test_a_policy_is_measured_on_sets_too(result, recipe_file):
    evaluation = inspecting.evaluate(load_recipe(recipe_file), Console(quiet=True))
    before = result.before
    assert evaluation.estimates().keys() == before.keys()
    assert evaluation.estimates()["hard/gold"].value == pytest.approx(before["hard/gold"].value)


def test_a_set_whose_evaluation_failed_is_measured_when_the_run_goes_on(recipe_file, result, tmp_path, monkeypatch):
    usual, calls = Evaluator.__call__, []

    def interrupted(self, model):
        calls.append(model)
        if len(calls) == 4:  # test rows and the set at the start, test rows at the end
            raise KeyboardInterrupt
        return usual(self, model)

    monkeypatch.setattr(Evaluator, "__call__", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(load_recipe(recipe_file), folder=tmp_path / "run")
    monkeypatch.undo()
    again = run(load_recipe(recipe_file), folder=tmp_path / "run", resume=True)
    assert again.after.keys() == result.after.keys() and again.sets == {"hard": 8}
    assert again.after["hard/nll"].value == pytest.approx(result.after["hard/nll"].value, rel=1e-5)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("evaluate.sets={test: {data: hard.jsonl}}", "sets: test is the name of a part of `source`"),
        ("evaluate.sets={a/b: {data: hard.jsonl}}", "sets: 'a/b' names files and metrics"),
        ("evaluate.sets={rewards: {data: hard.jsonl}}", "evaluate.sets: metrics of training begin with rewards/"),
        ("evaluate.sets={hard: {data: nothing.jsonl}}", "nothing.jsonl"),
        ("evaluate.by=topics", r"evaluate.by: no test row has a column 'topics'\. Did you mean 'topic'"),
    ],
)
def test_a_set_or_column_that_cannot_be_is_refused_before_a_model_is_loaded(
    home, recipe_file, monkeypatch, override, message
):
    monkeypatch.chdir(home)
    with pytest.raises(PrefoptError, match=message):
        plan(load_recipe(recipe_file, [override]))


def test_an_empty_set_is_refused(home, recipe_file, tmp_path):
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(PrefoptError, match=r"empty.jsonl|evaluate.sets.none: there is no row"):
        plan(load_recipe(recipe_file, [f"evaluate.sets={{none: {{data: {tmp_path}/empty.jsonl}}}}"]))


def test_the_resolved_recipe_can_be_read_again(result):
    assert yaml.safe_load((result.folder / "recipe.yaml").read_text())["evaluate"]["sets"]["hard"]["data"]
    assert RunFolder(result.folder).recipe().evaluate.by == ("topic",)
