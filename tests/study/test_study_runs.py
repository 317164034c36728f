"""Studies that are run: what goes on, what is left alone, and what a failure costs."""

import json
import multiprocessing
import os
import re
import signal
import threading
from pathlib import Path
from typing import Any

import pytest
import yaml
from _tiny import tiny_model, tiny_pairs, tiny_recipe
from rich.console import Console

from prefopt import PrefoptError
from prefopt.runs.records import RunOfArm
from prefopt.study import Study, run_study
from prefopt.study.comparison.confounds import confounds, seeds_note, varied_randomness
from prefopt.study.executors import LocalProcesses
from prefopt.study.plan import StudyPlan
from prefopt.support.files import locked

QUIET = Console(quiet=True)
BROKEN = {"train.lr": 1e30}
"""A recipe that can be planned and fails at its second step."""


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    return tiny_recipe(folder, tiny_model(folder / "lm"), tiny_pairs(folder / "pairs.jsonl"))


def study(base: Path, arms: dict[str, Any], **more: Any) -> Study:
    more["common"] = {"evaluate.prompts": 0, "train.steps": 3} | more.get("common", {})
    return Study(**{"recipe": str(base), "arms": arms, "seeds": 2, "metric": "nll", "better": "lower"} | more)


def metrics(folder: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name != "seconds"} for line in lines]


def numbers(results: list[RunOfArm]) -> dict[tuple[str, int], Any]:
    """Everything that a finished run says, but times."""
    found = {}
    for r in results:
        summary = json.loads((r.folder / "summary.json").read_text())
        summary["costs"].pop("seconds")
        found[r.arm, r.seed] = (summary, metrics(r.folder))
    return found


def test_a_failed_run_is_written_down_and_the_others_go_on(base: Path, tmp_path: Path) -> None:
    arms = {"start": {"train.steps": 0}, "broken": BROKEN, "DPO": {}}
    planned = study(base, arms, seeds=[4])
    results = run_study(planned, tmp_path / "s", console=QUIET)
    assert [(r.arm, r.seed) for r in results] == [(arm, 4) for arm in arms]
    for r in results:
        assert (r.folder / "summary.json").exists() == (r.arm != "broken")
        assert (r.folder / "error.txt").exists() == (r.arm == "broken")
    broken = results[1].folder
    assert "the loss is nan" in (broken / "error.txt").read_text() and len(metrics(broken)) > 0
    assert metrics(results[0].folder)[0] == metrics(results[2].folder)[0]  # one start, measured once
    # Again: what is finished is left alone, what failed is tried again, and its first failure kept.
    before = {r.folder: (r.folder / "summary.json").stat().st_mtime_ns for r in results if r.arm != "broken"}
    again = run_study(planned, tmp_path / "s", console=QUIET)
    assert again == results
    assert before == {folder: (folder / "summary.json").stat().st_mtime_ns for folder in before}
    assert (broken / "error-before.txt").exists() and (broken / "error.txt").exists()


def test_an_unfinished_run_goes_on_and_a_folder_of_nothing_is_moved_aside(base: Path, tmp_path: Path) -> None:
    planned = study(base, {"A": {}, "B": {"objective": "IPO"}}, seeds=1, common={"train.checkpoint_every": 2})
    whole = run_study(planned, tmp_path / "whole", console=QUIET)
    part = run_study(planned, tmp_path / "part", console=QUIET)
    (part[0].folder / "summary.json").unlink()
    for file in sorted(part[1].folder.rglob("*"), reverse=True):
        file.unlink() if file.is_file() else file.rmdir()
    (part[1].folder / "half").write_text("written")
    resumed = run_study(planned, tmp_path / "part", console=QUIET)
    assert numbers(resumed) == numbers(whole)
    assert (tmp_path / "part" / "aside" / "B-seed-0" / "half").read_text() == "written"


def test_a_changed_study_is_refused_and_a_larger_one_goes_on(base: Path, tmp_path: Path) -> None:
    arms = {"A": {}, "B": {"objective": "IPO"}}
    run_study(study(base, arms, seeds=1), tmp_path / "s", console=QUIET)
    with pytest.raises(PrefoptError, match=r"differs in train\.lr"):
        run_study(study(base, arms | {"A": {"train.lr": 0.5}}, seeds=1), tmp_path / "s", console=QUIET)
    with pytest.raises(PrefoptError, match="declared another metric, and results have been seen"):
        run_study(study(base, arms, seeds=1, metric="kl"), tmp_path / "s", console=QUIET)
    larger = run_study(study(base, {**arms, "C": {"objective": "SFT"}}, seeds=1), tmp_path / "s", console=QUIET)
    assert len(larger) == 3 and all((r.folder / "summary.json").exists() for r in larger)
    assert (
        "C:" in (tmp_path / "s/study.yaml").read_text() and "C:" not in (tmp_path / "s/study-before.yaml").read_text()
    )


def test_what_cannot_work_is_refused_before_anything_runs(base: Path, tmp_path: Path) -> None:
    for arm, message in {
        "{train.batch_size: 1000}": "B: train.batch_size is 1000",
        "{objective: Nope}": "B: unknown",
    }.items():
        with pytest.raises(PrefoptError, match=message):
            run_study(study(base, {"A": {}, "B": yaml.safe_load(arm)}), tmp_path / "s", console=QUIET)
    assert not list((tmp_path).rglob("recipe.yaml"))


def test_stages_feed_arms_and_their_failure_fails_only_those(base: Path, tmp_path: Path) -> None:
    rollouts = {"source.rollouts": {"completions": 2, "sampling": {"max_tokens": 4}}, "objective": "RLOO"}
    arms = {
        "online": {**rollouts, "feedback": {"name": "RewardModel", "model": "${stages.reward}"}},
        "DPO": {},
        "lost": {"policy.model": "${stages.bad}"},
    }
    stages = {"reward": {"objective": "BradleyTerry", "per": "seed"}, "bad": BROKEN}
    results = run_study(study(base, arms, stages=stages, seeds=[6]), tmp_path / "s", console=QUIET)
    done = {(r.arm, r.seed) for r in results if (r.folder / "summary.json").exists()}
    assert done == {(arm, seed) for arm in ("online", "DPO") for seed in [6]}
    assert "stages/bad is not finished" in (results[2].folder / "error.txt").read_text()
    costs = json.loads((results[0].folder / "summary.json").read_text())["costs"]
    assert costs["labels"] == 3 * 8 * 2 and 0 < costs["sampled_tokens"] <= 3 * 8 * 2 * 4


def test_every_arm_is_tuned_alike_on_other_seeds_and_rows(base: Path, tmp_path: Path) -> None:
    tune = {"fields": {"train.lr": {"low": 1e-5, "high": 1e-1, "log": True}}, "trials": 3, "seeds": [50]}
    arms = {"A": {}, "B": {"objective": "IPO", "tune": {"objective.tau": [0.1, 0.5]}}, "start": {"train.steps": 0}}
    planned = study(base, arms, seeds=1, tune=tune)
    results = run_study(planned, tmp_path / "s", console=QUIET)
    content = json.loads((tmp_path / "s" / "tuning.json").read_text())
    assert {arm: len(one["trials"]) for arm, one in content.items()} == {"A": 3, "B": 3}
    tried = {arm: [trial["settings"]["train.lr"] for trial in one["trials"]] for arm, one in content.items()}
    assert tried["A"] == tried["B"] and len(set(tried["A"])) == 3  # what arms share is drawn alike
    for r in results[:2]:
        one = content[r.arm]
        best = min(one["trials"], key=lambda trial: trial["values"][0])
        assert one["chosen"] == best["settings"]
        assert (
            StudyPlan(planned, tmp_path / "s").arms({r.arm: best["settings"]})[results.index(r)].recipe.train.lr
            == (best["settings"]["train.lr"])
        )
        assert json.loads((r.folder / "summary.json").read_text())["evaluated_on"]["split"] == "test"
    trial = tmp_path / "s/tuning/A/trial-0/seed-50"
    assert json.loads((trial / "summary.json").read_text())["evaluated_on"]["split"] == "validation"
    settled = (tmp_path / "s" / "tuning.json").read_text()
    run_study(planned, tmp_path / "s", console=QUIET)
    assert (tmp_path / "s" / "tuning.json").read_text() == settled


def test_a_planted_confound_is_named_and_a_controlled_study_has_none(base: Path, tmp_path: Path) -> None:
    arms = {"A": {}, "B": {"objective": "IPO"}, "odd": {"objective": "IPO", "train.batch_size": 4}}
    results = run_study(study(base, arms, common={"evaluate.prompts": 3}), tmp_path / "s", console=QUIET)
    mine = [c for c in confounds(results, "A") if "committed" not in c]
    assert [c for c in mine if c.startswith("B")] == []
    assert mine[:2] == ["odd: train.batch_size is 4, and 8 in A", "odd: its batches are not those of A, from step 1 on"]
    assert any(re.fullmatch(r"odd: its budget differs: labels are 0\.5\d times A's", c) for c in mine)
    assert not [c for c in confounds(results, "A", ["objective", "train"]) if "train.batch_size" in c]
    batches = {arm: [line.get("batch") for line in metrics(results[i].folder)] for i, arm in enumerate(arms)}
    assert batches["A"] == batches["B"] != batches["odd"]
    assert varied_randomness(results) == {
        "data": True,
        "init": False,
        "order": True,
        "sampling": False,
        "evaluation": True,
    }
    assert seeds_note(results).startswith(
        "The 2 seeds varied the split of the data, the order of batches and completions drawn"
    )


def test_under_a_baseline_without_training_the_trained_arms_are_compared_with_each_other(
    base: Path, tmp_path: Path
) -> None:
    arms = {"start": {"train.steps": 0}, "A": {}, "odd": {"objective": "IPO", "train.batch_size": 4}}
    results = run_study(study(base, arms), tmp_path / "s", console=QUIET)
    found = confounds(results, "start")
    assert "odd: train.batch_size is 4, and 8 in A" in found
    assert not [c for c in found if c.startswith(("A:", "start:"))]


@pytest.mark.slow
def test_a_process_that_dies_costs_its_own_run_alone(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deadly = tmp_path / "deadly.py"
    deadly.write_text("import os, signal\ndef rows():\n    os.kill(os.getpid(), signal.SIGKILL)\n    yield {}\n")
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / "study.yaml").write_text("")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(Path(__file__).parents[2]), str(Path(__file__).parents[1])]))
    arms = {"A": {}, "deadly": {"source.data": f"{deadly}:rows"}, "B": {"objective": "IPO"}}
    planned = StudyPlan(study(base, arms, seeds=1), tmp_path / "s")
    with LocalProcesses(1) as executor:
        outcomes = {outcome.job.name: outcome.error for outcome in executor.run(planned.arms())}
    assert outcomes == {"A": None, "deadly": "its process ended with exit code -9", "B": None}
    assert "out of memory" in (tmp_path / "s/arms/deadly/seed-0/error.txt").read_text()
    assert not multiprocessing.active_children()


def test_two_at_once_in_one_folder_are_refused(base: Path, tmp_path: Path) -> None:
    with locked(tmp_path / "s"), pytest.raises(PrefoptError, match="being worked on by another process"):
        run_study(study(base, {"A": {}, "B": {"objective": "IPO"}}), tmp_path / "s", console=QUIET)
    assert not (tmp_path / "s").exists()


# Python drops an interrupt that falls into the callback of a weak reference; then the study just comes to its end.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.slow
def test_an_interrupted_study_goes_on(base: Path, tmp_path: Path) -> None:
    planned = study(base, {"A": {}, "B": {"objective": "IPO"}}, seeds=1, common={"train.steps": 40})
    timer = threading.Timer(1.0, lambda: os.kill(os.getpid(), signal.SIGINT))
    timer.start()
    try:
        run_study(planned, tmp_path / "s", console=QUIET)
    except KeyboardInterrupt:
        pass
    finally:
        timer.cancel()
    results = run_study(planned, tmp_path / "s", console=QUIET)
    assert numbers(results) == numbers(run_study(planned, tmp_path / "other", console=QUIET))
    assert not list((tmp_path / "s").rglob("error.txt"))
