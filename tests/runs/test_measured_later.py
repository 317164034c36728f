"""What was measured of a finished run later stands beside its own numbers, and replaces none of them."""

import json
from pathlib import Path

import numpy as np
import pytest
from _folders import finished_run

from prefopt import PrefoptError
from prefopt.evaluation.evaluation import Evaluation
from prefopt.evaluation.intervals import Observations
from prefopt.runs.folder import RunFolder
from prefopt.runs.records import RunOfArm, read_run
from prefopt.study.comparison.compare import compare
from prefopt.study.report import write_report

MADE = {"command": ["prefopt", "benchmark"]}


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return RunFolder(finished_run(tmp_path / "B-seed0", 0, 0.5))


def quiz(*values: float, **numbers: float) -> Evaluation:
    weights = np.array([1.0, 3.0, 1.0])
    return Evaluation({"quiz": Observations(np.array(values) * weights, weights, ["p", "q", "r"])}, numbers)


def test_its_numbers_come_after_those_of_the_run(run: RunFolder) -> None:
    before = read_run(RunOfArm("B", 0, run.path))
    run.write_measured("quiz", MADE, quiz(1, 0, 1, ties=0.25))
    after = read_run(RunOfArm("B", 0, run.path))
    assert after.after == dict(before.after) | {"quiz": pytest.approx(2 / 5), "ties": 0.25}
    assert list(after.after)[: len(before.after)] == list(before.after)
    assert after.evaluation is not None and set(after.evaluation.observations) == {"gold", "quiz"}
    assert json.loads(run.measured_file("quiz").read_text())["made"] == MADE


def test_nothing_is_overwritten(run: RunFolder) -> None:
    run.write_measured("quiz", MADE, quiz(1, 0, 1))
    with pytest.raises(PrefoptError, match=r"quiz\.json is there already"):
        run.write_measured("quiz", MADE, quiz(0, 0, 0))
    with pytest.raises(PrefoptError, match=r"quiz is measured already, in measured/quiz\.json"):
        run.write_measured("again", MADE, quiz(0, 0, 0))
    with pytest.raises(PrefoptError, match=r"gold is measured already, in summary\.json"):
        run.write_measured("other", MADE, Evaluation({}, {"gold": 1.0}))
    assert [*run.measured()] == ["quiz"]


def test_a_file_from_elsewhere_does_not_replace_what_the_run_measured(run: RunFolder) -> None:
    run.write_measured("quiz", MADE, quiz(1, 0, 1))
    file = run.measured_file("quiz")
    file.write_text(file.read_text().replace('"quiz"', '"gold"'))
    record = read_run(RunOfArm("B", 0, run.path))
    assert record.after["gold"] == 0.5
    assert record.evaluation is not None and list(record.evaluation.observations["gold"].groups) == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("content", "wrong"),
    [
        ('{"numbers": {}, "observations": {}}', "`made` is missing"),
        ('{"made": {}, "numbers": {"quiz": "good"}}', "quiz must be a number"),
        ('{"made": {}, "observations": {"quiz": 3}}', "not subscriptable"),
    ],
)
def test_a_damaged_file_is_named(run: RunFolder, content: str, wrong: str) -> None:
    run.measured_file("quiz").parent.mkdir()
    run.measured_file("quiz").write_text(content)
    with pytest.raises(PrefoptError, match=rf"quiz\.json is damaged \(.*{wrong}.*\): restore it, or remove it"):
        run.measured()


def test_captions_say_which_rows_a_metric_is_of(tmp_path: Path) -> None:
    """Of a benchmark, a further set, a task, and of the run's own samples, from what the files say of themselves."""
    made = {
        "quiz": {"benchmark": "quiz", "data": {"name": "/data/quiz.jsonl", "rows": 30}},
        "set-hard": {"rows": 6, "data": ["hard.jsonl"]},
        "tasks": {"harness": "lm-evaluation-harness 0.4.9", "tasks": {"arc_easy": {"documents": 20}}},
        "topic": {"judges": [], "samples": "evaluations/"},
    }
    folders = [finished_run(tmp_path / f"{arm}-seed0", 0, gold) for arm, gold in (("A", 0.1), ("B", 0.6))]
    for name, content in made.items():
        observed = quiz(1, 1, 1).observations["quiz"]
        RunFolder(folders[1]).write_measured(name, content, Evaluation({name: observed}))
    rows_of = compare([str(folder) for folder in folders]).rows_of
    assert rows_of("quiz") == rows_of("quiz/easy") == "30 rows of the benchmark quiz (quiz.jsonl), measured later"
    assert rows_of("hard/gold[source=a/b]") == "6 rows of the set hard (hard.jsonl), measured later"
    assert rows_of("arc_easy/acc") == "20 documents of the task arc_easy (lm-evaluation-harness 0.4.9), measured later"
    assert rows_of("topic") == rows_of("gold") == "test rows"
    assert rows_of("elsewhere/gold") == "rows of elsewhere"


def test_a_report_has_it_beside_gold_and_pairs_prompts_where_there_is_one_seed(tmp_path: Path) -> None:
    folders = [finished_run(tmp_path / f"{arm}-seed0", 0, gold) for arm, gold in (("A", 0.1), ("B", 0.6))]
    for folder, value in zip(folders, (0.0, 1.0), strict=True):
        RunFolder(folder).write_measured("quiz", MADE, quiz(value, 1, 1))
    comparison = compare([str(folder) for folder in folders])
    table = next(table for table in comparison.others if table.metric == "quiz")
    assert comparison.metric == "gold"
    assert table.rows[1].values == {0: 1.0} and table.rows[0].values == {0: pytest.approx(0.8)}
    assert table.rows[1].over_prompts is not None and table.rows[1].over_prompts.value == pytest.approx(0.2)
    write_report(comparison, tmp_path / "report")
    assert "quiz" in (tmp_path / "report" / "results.csv").read_text().splitlines()[0].split(",")
