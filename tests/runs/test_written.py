"""What prefopt wrote and somebody else damaged: each file says what is wrong with it and what can be done."""

import json
from pathlib import Path

import pytest
from _folders import finished_run

from prefopt import PrefoptError
from prefopt.runs.folder import RunFolder
from prefopt.runs.records import RunOfArm, read_run
from prefopt.study.comparison.confounds import confounds, seeds_note

TRAINED = {"steps": 4, "stopped": "", "evaluated_on": {"rows": 3}, "costs": {}, "writes": True}


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return RunFolder(finished_run(tmp_path / "B-seed0", 0, 0.5))


@pytest.mark.parametrize(
    ("content", "wrong"),
    [
        ("{", "Expecting"),
        ("[]", "it must hold keys and values"),
        ('{"after": [0.5]}', "`after` must hold keys and values"),
        ('{"after": {"gold": "high"}}', "`after.gold` must be a number"),
        ('{"before": {"gold": {"value": "low"}}}', "`before.gold` must be a number"),
        ('{"before": {"gold": {"low": 1}}}', "'value'"),
        ('{"costs": {"flops": "many"}}', "`costs.flops` must be a number"),
        (f'{{"after": {{"gold": {10**400}}}}}', "`after.gold` must be a number"),
        (f'{{"before": {{"gold": {{"value": {-(10**400)}}}}}}}', "`before.gold` must be a number"),
    ],
)
def test_a_summary(run: RunFolder, content: str, wrong: str) -> None:
    run.summary_file.write_text(content)
    with pytest.raises(
        PrefoptError, match=rf"summary\.json is damaged \(.*{wrong}.*\): restore it, or remove it: `prefopt"
    ):
        run.summary()


def test_a_summary_of_numbers_that_are_not_finite_is_none_that_is_damaged(run: RunFolder) -> None:
    run.summary_file.write_text('{"after": {"gold": null, "kl": {"value": null}, "length": 2}}')
    after = read_run(RunOfArm("B", 0, run.path)).after
    assert after["length"] == 2 and after["gold"] != after["gold"] and after["kl"] != after["kl"]


@pytest.mark.parametrize("part", ["model", "data", "versions", "git", "device", "plugins", "seeds"])
def test_a_manifest(run: RunFolder, part: str) -> None:
    run.manifest_file.write_text(json.dumps({part: 3}))
    with pytest.raises(
        PrefoptError, match=rf"manifest\.json is damaged \(`{part}` must hold .*restore it, or remove it"
    ):
        run.manifest()


@pytest.mark.parametrize(
    ("name", "value"),
    [*((name, ...) for name in TRAINED), ("steps", "four"), ("steps", -1), ("steps", 10**400), ("costs", 3)],
)
def test_a_record_of_training(run: RunFolder, name: str, value: object) -> None:
    run.trained_file.write_text(json.dumps(TRAINED))
    assert run.training() == TRAINED
    damaged = {key: one for key, one in {**TRAINED, name: value}.items() if one is not ...}
    run.trained_file.write_text(json.dumps(damaged))
    with pytest.raises(
        PrefoptError, match=rf"trained\.json is damaged \(`{name}` .*then trains on from the last checkpoint"
    ):
        run.training()


@pytest.mark.parametrize(
    "line",
    [
        *('{"step": 1, "loss": "small"}', '{"step": "one"}', '{"step": 1, "loss": [1]}', '{"step": null}'),
        *(f'{{"step": 1, "loss": {10**400}}}', f'{{"step": {10**400}}}'),
    ],
)
def test_a_line_of_metrics(run: RunFolder, line: str) -> None:
    run.metrics_file.write_text(f'{{"step": 0, "loss": null}}\n{line}\n{{"step": 2}}\n')
    with pytest.raises(PrefoptError, match=r"metrics\.jsonl, line 2, is damaged: restore the file, or remove the line"):
        list(run.history())


def test_a_recipe_of_a_run_says_what_can_be_done(run: RunFolder) -> None:
    run.recipe_file.write_text("source: {")
    with pytest.raises(
        PrefoptError, match=r"recipe\.yaml is damaged \(line 1, column 10: not YAML.*restore it; nothing goes"
    ):
        run.recipe()


def test_a_recipe_that_is_no_runs_is_named_where_arms_are_compared(run: RunFolder, tmp_path: Path) -> None:
    other = finished_run(tmp_path / "A-seed0", 0, 0.5)
    run.recipe_file.write_text("name: tiny\nseed: 0\n")
    with pytest.raises(PrefoptError, match=r"B-seed0/recipe\.yaml is damaged: a run's has `objective`"):
        confounds([RunOfArm("A", 0, other), RunOfArm("B", 0, run.path)])


def test_without_a_manifest_a_run_is_compared_in_the_rest(run: RunFolder, tmp_path: Path) -> None:
    """Its message says that it may be removed."""
    changed = {"recipe": {"train": {"batch_size": 8, "lr": 0.001}}}
    others = [finished_run(tmp_path / f"A-seed{seed}", seed, 0.5, **changed) for seed in (0, 1)]
    run.manifest_file.unlink()
    results = [RunOfArm("A", seed, folder) for seed, folder in enumerate(others)] + [RunOfArm("B", 0, run.path)]
    said = confounds(results)
    assert "B: train.batch_size is 4, and 8 in A" in said
    assert "B, seed 0: no manifest.json, so weights, data, code and device cannot be compared" in said
    assert not any("other weights" in sentence or "rows are not" in sentence for sentence in said)
    assert seeds_note(results).startswith("The 2 seeds")
