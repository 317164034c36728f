"""A curve is of one part of the data from start to end, and what was measured at its ends is kept like the rest."""

import json

import pytest
from _folders import finished_run
from _tiny import tiny_model, tiny_pairs, tiny_recipe

from prefopt import load_recipe, run
from prefopt.evaluation.evaluator import Evaluator
from prefopt.runs.folder import RunFolder
from prefopt.runs.records import RunOfArm, read_run, rows_of

PARTS = ("test", "validation")


@pytest.fixture(scope="module")
def recipe_file(tmp_path_factory):
    home = tmp_path_factory.mktemp("home")
    pairs = tiny_pairs(home / "pairs.jsonl", rows=80)
    evaluate = "{prompts: 3, every: 2, sampling: {max_tokens: 4}}"
    return tiny_recipe(home, tiny_model(home / "lm"), pairs, evaluate=evaluate)


@pytest.fixture(scope="module")
def finished(recipe_file, tmp_path_factory):
    return run(load_recipe(recipe_file), folder=tmp_path_factory.mktemp("runs") / "run").folder


def files(folder) -> list[str]:
    return sorted(file.name for file in (folder / "evaluations").iterdir())


def test_start_and_end_are_measured_on_validation_rows_too(finished):
    assert files(finished) == [f"{part}-step-{step:06d}.json" for part in PARTS for step in (0, 4)]
    record = read_run(RunOfArm("a", 0, finished))
    assert record.part == "test" and record.part_of_curves == "validation"
    steps, values = record.measured("nll")
    assert steps == [0, 2, 4]
    logged = {line["step"]: line["validation/nll"] for line in record.history if "validation/nll" in line}
    assert values == [logged[step] for step in steps]
    for step in (0, 4):
        kept = RunFolder(finished).evaluation("validation", step)
        assert kept.estimates()["nll"].value == logged[step]
    assert record.after["nll"] == RunFolder(finished).evaluation("test", 4).estimates()["nll"].value != logged[4]
    assert [kl for kl, _ in record.path("nll")] == record.measured("kl")[1]


def test_without_evaluations_in_between_validation_rows_are_not_measured(recipe_file, tmp_path):
    folder = run(load_recipe(recipe_file, ["evaluate.every=null", "train.steps=1"]), folder=tmp_path / "run").folder
    assert files(folder) == ["test-step-000000.json", "test-step-000001.json"]
    record = read_run(RunOfArm("a", 0, folder))
    assert record.part_of_curves == "test" and record.measured("nll")[0] == [0, 1]


def test_where_validation_rows_are_those_of_the_ends_they_are_measured_once(recipe_file, tmp_path):
    settings = load_recipe(recipe_file, ["evaluate.part=validation"])
    folder = run(settings, folder=tmp_path / "run").folder
    assert files(folder) == ["validation-step-000000.json", "validation-step-000004.json"]
    record = read_run(RunOfArm("a", 0, folder))
    assert record.part == "validation" and record.measured("nll")[0] == [0, 2, 4]
    assert record.evaluation is not None


def test_a_run_whose_last_evaluations_failed_comes_to_the_same(recipe_file, finished, tmp_path, monkeypatch):
    usual, calls = Evaluator.__call__, []

    def interrupted(self, model):
        calls.append(model)
        if len(calls) == 5:  # test and validation rows at the start, one in between, test rows at the end
            raise KeyboardInterrupt
        return usual(self, model)

    folder = tmp_path / "run"
    monkeypatch.setattr(Evaluator, "__call__", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(load_recipe(recipe_file), folder=folder)
    monkeypatch.undo()
    assert RunFolder(folder).trained
    run(load_recipe(recipe_file), folder=folder, resume=True)
    assert files(folder) == files(finished)
    for part in PARTS:
        mine, other = (RunFolder(one).evaluation(part, 4).estimates() for one in (folder, finished))
        assert mine.keys() == other.keys()
        assert all(mine[name].value == pytest.approx(other[name].value, rel=1e-5, abs=1e-6) for name in mine), part
    assert read_run(RunOfArm("a", 0, folder)).measured("nll")[0] == [0, 2, 4]


def without(folder, *lines):
    """The folder without these lines of metrics.jsonl, each a step and a metric in it."""
    history = list(RunFolder(folder).history())
    kept = [line for line in history if not any(line["step"] == step and name in line for step, name in lines)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in kept))
    return read_run(RunOfArm("a", 0, folder))


def test_a_folder_with_test_rows_at_its_ends_and_validation_rows_between_is_read_as_validation_alone(tmp_path):
    folder = finished_run(tmp_path / "old", 0, gold=2.0)
    assert read_run(RunOfArm("a", 0, folder)).measured("gold") == ([0, 2, 4], [0.0, 1.0, 2.0])
    record = without(folder, (0, "validation/gold"), (4, "validation/gold"))
    assert {key for line in record.history for key in line} > {"test/gold", "validation/gold"}
    assert record.measured("gold") == ([2], [1.0]) and record.path("gold") == [(1.0, 1.0)]


def test_the_rows_that_are_shown_are_named_and_of_unlike_runs_both(tmp_path):
    between = read_run(RunOfArm("a", 0, finished_run(tmp_path / "a", 0, gold=2.0)))
    ends = without(finished_run(tmp_path / "b", 1, gold=2.0), *((step, "validation/gold") for step in (0, 2, 4)))
    assert rows_of([between]) == "test rows" and rows_of([between], curves=True) == "validation rows"
    assert rows_of([between, ends], curves=True) == "test and validation rows"
