"""The best policy on validation rows is the result, and a run that no longer improves stops; killed and resumed, alike."""

import json
import math
import shutil
from pathlib import Path

import pytest
from _tiny import tiny_model, tiny_pairs, tiny_recipe

from prefopt import PrefoptError, load_recipe, run
from prefopt.runs.choosing import Best, best_of, measured
from prefopt.runs.folder import RunFolder
from prefopt.runs.inspecting import trained
from prefopt.runs.listing import listed_runs
from prefopt.runs.records import RunOfArm, read_run
from prefopt.training.loop import Trainer

CHOOSING = ["evaluate.every=2", "train.keep_best={metric: kl, better: higher}"]


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """DPO for 12 steps, in the course of which the KL from the reference is largest after 8."""
    home = tmp_path_factory.mktemp("home")
    train = "{steps: 12, batch_size: 8, lr: 2e-2, threads: 1, warmup: 0, schedule: constant, checkpoint_every: 4}"
    source = f"{{data: {tiny_pairs(home / 'pairs.jsonl', rows=60)}, split: [0.6, 0.2, 0.2]}}"
    tiny_recipe(home, tiny_model(home / "lm"), home / "pairs.jsonl", train=train, source=source)
    return home


@pytest.fixture(scope="module")
def whole(home) -> RunFolder:
    return RunFolder(run(load_recipe(home / "recipe.yaml", CHOOSING), folder=home / "whole").folder)


def summary(folder: RunFolder) -> dict:
    content = folder.summary()
    content["costs"].pop("seconds")
    return content


def weights(folder: RunFolder) -> bytes:
    return (folder.policy / "model.safetensors").read_bytes()


def interrupted_at(step: int):
    """`Trainer._learn` that ends the run after so many steps."""
    usual = Trainer._learn

    def learn(self, batch):
        if self.done == step:
            raise KeyboardInterrupt
        return usual(self, batch)

    return learn


def test_the_policy_of_the_best_evaluation_is_saved_and_measured(home, whole):
    values = dict(measured(whole.history(), "kl"))
    chosen = whole.summary()["chosen"]
    assert list(values) == [2, 4, 6, 8, 10, 12]
    assert chosen == {"step": chosen["step"], "metric": "kl", "value": max(values.values()), "better": "higher"}
    assert values[chosen["step"]] == max(values.values()) and 0 < chosen["step"] < 12
    shorter = [f"train.steps={chosen['step']}"]  # a constant learning rate: the same updates up to there
    other = RunFolder(run(load_recipe(home / "recipe.yaml", shorter), folder=home / "shorter").folder)
    assert weights(whole) == weights(other)
    assert whole.summary()["after"] == other.summary()["after"] and whole.summary()["steps"] == 12
    (listed,) = [one for one in listed_runs(home) if one.folder == whole.path]
    assert f"(step {chosen['step']} kept)" in listed.result


def test_evaluations_at_the_end_are_named_after_the_step_of_the_policy(whole):
    chosen = whole.summary()["chosen"]["step"]
    assert {file.name for file in (whole.path / "evaluations").iterdir()} == {
        f"{part}-step-{step:06d}.json" for part in ("test", "validation") for step in (0, chosen)
    }
    last = whole.last_evaluation()
    assert last is not None and last.estimates()["kl"].value == whole.summary()["after"]["kl"]["value"]
    (line,) = [line for line in whole.history() if "test/kl" in line and line["step"]]
    assert (line["step"], line["test/of_step"]) == (12, chosen)
    assert not any("validation/of_step" in line for line in whole.history())  # at each step, that step's


def test_what_is_on_disk_in_the_course_of_a_run_is_a_model(whole):
    """With checkpoints, from which it may be gone on with, the best one stays."""
    chosen = whole.summary()["chosen"]["step"]
    (kept,) = whole.best.iterdir()
    assert kept == whole.best_policy(chosen)
    assert trained(kept).policy.model == (str(kept / "policy"),)
    assert (kept / "policy" / "model.safetensors").read_bytes() == weights(whole)


def test_without_checkpoints_it_is_not_kept_twice(home):
    overrides = [*CHOOSING, "train.checkpoint_every=null", "train.steps=4"]
    folder = RunFolder(run(load_recipe(home / "recipe.yaml", overrides), folder=home / "bare").folder)
    assert not folder.best.exists() and folder.policy.is_dir()


@pytest.mark.parametrize("adapter", ["null", "{r: 2}"])
@pytest.mark.parametrize("step", [5, 9, 11])
def test_interrupted_anywhere_it_comes_to_the_same(home, tmp_path, monkeypatch, adapter, step):
    """After the best evaluation, before and after later checkpoints."""
    settings = load_recipe(home / "recipe.yaml", [*CHOOSING, f"policy.adapter={adapter}", "train.patience=9"])
    straight = RunFolder(run(settings, folder=tmp_path / "straight").folder)
    folder = RunFolder(tmp_path / "broken")
    with monkeypatch.context() as patched:
        patched.setattr(Trainer, "_learn", interrupted_at(step))
        with pytest.raises(KeyboardInterrupt):
            run(settings, folder=folder.path)
    run(settings, folder=folder.path, resume=True)
    assert summary(folder) == summary(straight)
    for file in straight.policy.glob("*.safetensors"):
        assert (folder.policy / file.name).read_bytes() == file.read_bytes()


def test_a_run_without_improvement_stops_and_counts(home, whole, tmp_path):
    settings = load_recipe(home / "recipe.yaml", [*CHOOSING, "train.patience=2", "train.steps=20"])
    folder = RunFolder(run(settings, folder=tmp_path / "run").folder)
    best = whole.summary()["chosen"]["step"]
    assert folder.summary()["steps"] == best + 4 and folder.summary()["chosen"]["step"] == best
    assert "in 2 evaluations (train.patience)" in folder.summary()["stopped"]
    assert weights(folder) == weights(whole)
    record = read_run(RunOfArm("a", 0, folder.path))
    assert record.state == "stopped" and math.isfinite(record.after["kl"])
    expected = summary(folder)
    for name in ("summary.json", "trained.json"):  # killed after the checkpoint of the step at which it stopped
        (folder.path / name).unlink()
    shutil.rmtree(folder.policy)
    run(settings, folder=folder.path, resume=True)
    assert summary(folder) == expected


def test_what_was_best_at_a_checkpoint_stays_until_a_later_checkpoint(home, tmp_path, monkeypatch):
    """A resume goes back to it, and may find others worse by rounding."""
    settings = load_recipe(home / "recipe.yaml", CHOOSING)
    monkeypatch.setattr(Trainer, "_learn", interrupted_at(7))
    with pytest.raises(KeyboardInterrupt):
        run(settings, folder=tmp_path / "run")
    assert sorted(one.name for one in (tmp_path / "run" / "best").iterdir()) == ["step-000004", "step-000006"]


def test_out_of_patience_at_its_last_step_a_run_is_not_stopped_but_done(home, tmp_path):
    settings = load_recipe(home / "recipe.yaml", [*CHOOSING, "train.patience=2"])
    folder = RunFolder(run(settings, folder=tmp_path / "run").folder)
    assert folder.summary()["steps"] == 12 and "stopped" not in folder.summary()


def test_equal_values_and_numbers_that_are_none():
    values = [(1, None), (2, 0.5), (3, 0.7), (4, 0.7), (5, None)]
    assert best_of(values, "higher") == Best(3, 0.7) and best_of(values, "lower") == Best(2, 0.5)
    assert best_of([(1, None)], "higher") is None is best_of([], "lower")


def test_evaluations_before_training_are_no_choice():
    lines = [{"step": 0, "validation/nll": 1.0}, {"step": 2, "loss": 1.0}, {"step": 2, "validation/nll": None}]
    assert measured(lines, "nll") == [(2, None)]


def test_the_best_that_was_removed_is_asked_for(home, whole, tmp_path):
    folder = RunFolder(shutil.copytree(whole.path, tmp_path / "run"))
    shutil.rmtree(folder.best)
    for name in ("summary.json", "trained.json"):
        (folder.path / name).unlink()
    with pytest.raises(PrefoptError, match=r"best/step-\d+/model.safetensors is damaged"):
        run(folder.recipe(), folder=folder.path, resume=True)


def test_chosen_on_the_rows_that_it_is_measured_on_is_said(home, tmp_path):
    run(
        load_recipe(home / "recipe.yaml", [*CHOOSING, "evaluate.part=validation", "train.steps=2"]),
        folder=tmp_path / "run",
    )
    assert any(
        "looks better than it is" in one for one in json.loads((tmp_path / "run/manifest.json").read_text())["warnings"]
    )
