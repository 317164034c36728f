"""How a run ends and how it is gone on with: nothing that was trained is lost, and a folder belongs to one process."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from _tiny import tiny_model, tiny_pairs, tiny_recipe
from rich.console import Console

import prefopt.training.loop
from prefopt import PrefoptError, load_recipe, run
from prefopt.evaluation.evaluator import Evaluator
from prefopt.runs.folder import RunFolder

HOLD = """
import sys
from pathlib import Path
from prefopt.support.files import locked
with locked(Path(sys.argv[1])):
    print("holding", flush=True)
    sys.stdin.readline()
"""


@pytest.fixture
def recipe_file(tmp_path: Path) -> Path:
    model, data = tiny_model(tmp_path / "lm"), tiny_pairs(tmp_path / "pairs.jsonl", rows=40)
    content = {
        "policy": {"model": str(model)},
        "source": {"data": str(data)},
        "objective": "DPO",
        "train": {"steps": 3, "batch_size": 8, "lr": 1e-3},
        "evaluate": {"prompts": 4, "sampling": {"max_tokens": 6}},
        "track": {"folder": str(tmp_path / "runs")},
    }
    file = tmp_path / "recipe.yaml"
    file.write_text(json.dumps(content))
    return file


def summary(folder: Path) -> dict:
    content = json.loads((folder / "summary.json").read_text())
    content["costs"].pop("seconds")
    return content


def lines(folder: Path) -> list[dict]:
    history = RunFolder(folder).history()
    return [{k: v for k, v in line.items() if k != "seconds"} for line in history]


@pytest.fixture
def failing(monkeypatch):
    """The second evaluation of a run raises this."""
    usual, calls = Evaluator.__call__, []

    def fail(error: BaseException) -> None:
        def call(self, model):
            calls.append(model)
            if len(calls) == 2:
                raise error
            return usual(self, model)

        monkeypatch.setattr(Evaluator, "__call__", call)

    return fail


@pytest.mark.parametrize("error", [PrefoptError("out of money"), OSError("No space left"), KeyboardInterrupt()])
@pytest.mark.parametrize("adapter", ["null", "{r: 2}"])
def test_a_last_evaluation_that_fails_loses_nothing(recipe_file, tmp_path, failing, monkeypatch, error, adapter):
    settings = load_recipe(recipe_file, [f"policy.adapter={adapter}", "policy.dtype=float64"])
    whole = run(settings, folder=tmp_path / "whole").folder
    failing(error)
    folder = tmp_path / "run"
    with pytest.raises(type(error)):
        run(settings, folder=folder)
    assert (folder / "policy" / "config.json").exists() or (folder / "policy" / "adapter_config.json").exists()
    assert not RunFolder(folder).finished and RunFolder(folder).trained
    monkeypatch.setattr(prefopt.training.loop.Trainer, "__iter__", None)  # nothing is trained again
    run(settings, folder=folder, resume=True)
    for part in ("before", "after", "change"):
        for name, mine in summary(folder)[part].items():
            theirs = summary(whole)[part][name]
            assert mine.keys() == theirs.keys(), name
            for key, value in mine.items():  # None where samples are all the same, and there is no interval
                assert value == (None if value is None else pytest.approx(theirs[key], rel=1e-6, abs=1e-9)), name
    assert {k: summary(folder)[k] for k in ("steps", "costs", "evaluated_on")} == {
        k: summary(whole)[k] for k in ("steps", "costs", "evaluated_on")
    }
    assert len(lines(folder)) == len(lines(whole)) and not RunFolder(folder).trained
    with pytest.raises(PrefoptError, match="is finished"):
        run(settings, folder=folder, resume=True)


@pytest.mark.parametrize("objective", ["DPO", "BradleyTerry"])
@pytest.mark.parametrize(
    "more", [[], ["train.steps=2", "evaluate.every=1"], ["train.steps=2", "train.checkpoint_every=1"]]
)
def test_a_last_update_that_diverged_is_said_and_no_such_model_is_saved(recipe_file, tmp_path, objective, more):
    settings = load_recipe(
        recipe_file,
        [f"objective={objective}", "train.steps=1", "train.lr=1e25", "train.warmup=0", *more],
    )
    with pytest.raises(
        PrefoptError, match=r"diverged: after the update of step 1 .* train.lr too high \(it is 1e\+25\)"
    ):
        run(settings, folder=tmp_path / "run", console=Console(quiet=True))
    folder = RunFolder(tmp_path / "run")
    assert not folder.trained and not folder.policy.exists() and not list(folder.path.glob("checkpoints/*"))
    assert folder.diverged and folder.diverged_file.read_text().startswith(
        "training diverged: after the update of step 1"
    )


def test_a_run_that_its_limits_stopped_stays_stopped_when_only_its_evaluation_is_left(recipe_file, tmp_path, failing):
    settings = load_recipe(recipe_file, ["train.limits={loss: [null, 0]}", "train.beyond=stop"])
    failing(KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        run(settings, folder=tmp_path / "run", console=Console(quiet=True))
    run(settings, folder=tmp_path / "run", resume=True, console=Console(quiet=True))
    assert summary(tmp_path / "run")["steps"] == 1
    assert summary(tmp_path / "run")["stopped"].startswith("step 1: loss")


def test_a_run_that_its_limits_stopped_at_a_checkpoint_stays_stopped_if_it_is_killed_before_it_is_saved(
    recipe_file, tmp_path, monkeypatch
):
    """Also where that step is none of those that are logged."""
    limits = ["train.limits={lr: [null, 0]}", "train.beyond=stop", "train.checkpoint_every=1", "track.every=3"]
    settings = load_recipe(recipe_file, limits)
    with monkeypatch.context() as patched:
        patched.setattr("prefopt.runs.run._save", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt()))
        with pytest.raises(KeyboardInterrupt):
            run(settings, folder=tmp_path / "run", console=Console(quiet=True))
    assert [path.name for path in (tmp_path / "run/checkpoints").iterdir()] == ["step-000001"]
    run(settings, folder=tmp_path / "run", resume=True, console=Console(quiet=True))
    assert summary(tmp_path / "run")["steps"] == 1
    assert summary(tmp_path / "run")["stopped"].startswith("step 1: lr")


@pytest.mark.parametrize("resume", [False, True])
def test_two_processes_in_one_run_folder_are_refused(recipe_file, tmp_path, resume):
    folder = tmp_path / "run"
    settings = load_recipe(recipe_file, ["train.steps=1"])
    if resume:
        folder.mkdir()
        RunFolder(folder).write_recipe(settings)
    environment = os.environ | {"PYTHONPATH": ":".join(sys.path)}
    command = [sys.executable, "-c", HOLD, str(folder)]
    with subprocess.Popen(command, env=environment, stdin=-1, stdout=-1, text=True) as other:
        assert other.stdout is not None and other.stdin is not None
        assert other.stdout.readline() == "holding\n"
        with pytest.raises(PrefoptError, match=f"{folder} is being worked on by another process: wait for it"):
            run(settings, folder=folder, resume=resume)
        other.stdin.write("\n")
    assert run(settings, folder=folder, resume=resume).after


def test_a_run_that_is_refused_leaves_no_folder(recipe_file, tmp_path):
    with pytest.raises(PrefoptError):
        run(load_recipe(recipe_file, ["objective=Nothing"]), folder=tmp_path / "new" / "run")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("name", ["manifest.json", "summary.json", "evaluations/test-step-000000.json", "recipe.yaml"])
def test_a_damaged_file_is_named(recipe_file, tmp_path, name):
    folder = RunFolder(run(load_recipe(recipe_file, ["train.steps=0"]), folder=tmp_path / "run").folder)
    (folder.path / name).write_text("{")
    with pytest.raises(PrefoptError, match=name):
        folder.manifest(), folder.summary(), folder.last_evaluation(), folder.recipe_tree()


FOREIGN = [
    ("manifest.json", "device", [1, 2]),
    ("summary.json", "after", {"nll": {"value": "low"}}),
    ("summary.json", "costs", [1]),
    ("trained.json", "steps", 1e400),
    ("trained.json", "evaluated_on", None),
    (
        "evaluations/test-step-000001.json",
        "observations",
        {"nll": {"values": [1, 2], "weights": [1], "groups": ["a", "b"]}},
    ),
    ("evaluations/test-step-000001.json", "observations", {"nll": {"values": [1], "weights": [1], "groups": [{}]}}),
    *(
        ("evaluations/test-step-000001.json", "observations", {"nll": {"values": [v], "weights": [1], "groups": ["a"]}})
        for v in ("x", 10**400)
    ),
    ("evaluations/test-step-000001.json", "numbers", {"kl": 10**400}),
    ("evaluations/test-step-000001.json", "confidence", [1, 2]),
    ("evaluations/test-step-000001.json", "seed", {}),
    ("evaluations/test-step-000001.json", "samples", [{"text": "x"}]),
    ("evaluations/test-step-000001.json", "numbers", {"kl": "low"}),
]


@pytest.fixture(scope="module")
def over(tmp_path_factory) -> RunFolder:
    """A run that is over."""
    home = tmp_path_factory.mktemp("over")
    file = tiny_recipe(
        home, tiny_model(home / "lm"), tiny_pairs(home / "pairs.jsonl"), train="{steps: 1, batch_size: 8}"
    )
    return RunFolder(run(load_recipe(file), folder=home / "run").folder)


@pytest.mark.parametrize(("name", "key", "value"), FOREIGN)
def test_a_file_whose_content_is_of_another_kind_is_named_with_the_key_where_it_is_read(
    over, tmp_path, name, key, value
):
    folder = RunFolder(tmp_path / "run")
    shutil.copytree(over.path, folder.path)
    folder.manifest(), folder.summary(), folder.training(), folder.last_evaluation()
    content = json.loads((folder.path / name).read_text())
    (folder.path / name).write_text(json.dumps(content | {key: value}))
    with pytest.raises(PrefoptError, match=rf"{name} is damaged \(.*\): restore it, or remove it"):
        folder.manifest(), folder.summary(), folder.training(), folder.last_evaluation()
