"""A study that is killed three times comes to what an undisturbed one does, and two processes to what one does."""

import json
import random
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from _forked import Forked

from prefopt.study import load_study, run_study

STUDY = """
name: small
recipe: {recipes}/dpo.yaml
seeds: [0]
common:
  source.arguments.n: 40
  source.test.arguments.n: 12
  source.split: [0.8, 0.2, 0]
  train.steps: 6
  train.batch_size: 8
  train.checkpoint_every: 2
  evaluate.rows: 12
  evaluate.prompts: 8
stages:
  reward: {{objective: BradleyTerry, per: seed}}
  labels: {{label: {recipes}/rlaif/label.yaml, prompts: 32, batch_size: 8, feedback: "prefopt.testbeds.pocket:gold", per: seed}}
arms:
  start: {{train.steps: 0}}
  DPO: {{}}
  RLAIF: {{source.data: "${{stages.labels}}/data.jsonl"}}
  PPO: {{recipe: {recipes}/ppo.yaml, train.minibatch_size: 4, feedback: {{name: RewardModel, model: "${{stages.reward}}"}}}}
"""
TIMED = ("seconds",)


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("study") / "small.yaml"
    made.write_text(STUDY.format(recipes=Path(__file__).parents[2] / "recipes" / "pocket"))
    return made


@pytest.fixture(scope="module")
def undisturbed(file: Path) -> Path:
    folder = file.with_name("undisturbed")
    run_study(load_study(file), folder)
    assert not list(folder.rglob("error.txt"))  # a run that fails everywhere alike would show nothing
    return folder


def numbers(folder: Path) -> dict[str, Any]:
    """All that the runs of arms and stages say, but times and the study's own name."""
    found: dict[str, Any] = {}
    for summary in sorted(folder.glob("*/*/seed-*/summary.json")):
        name = str(summary.parent.relative_to(folder))
        content = json.loads(summary.read_text())
        lines = [json.loads(line) for line in (summary.parent / "metrics.jsonl").read_text().splitlines()]
        content["costs"].pop("seconds")
        found[name] = (content, [{k: v for k, v in line.items() if k not in TIMED} for line in lines])
    for labels in sorted(folder.glob("stages/*/seed-*/data.jsonl")):
        rows = map(json.loads, labels.read_text().splitlines())
        found[str(labels.relative_to(folder))] = sorted(
            (row["prompt"], row["completions"], row["scores"]) for row in rows
        )
    return found


def command(file: Path, folder: Path, *more: str) -> Forked:
    return Forked(["study", file, "--out", folder, *more], file.parent)


def written(folder: Path) -> int:
    files = (*folder.glob("*/*/seed-*/metrics.jsonl"), *folder.glob("stages/*/seed-*/data.jsonl"))
    return sum(len(file.read_bytes().splitlines()) for file in files)


@pytest.mark.slow
@pytest.mark.timeout(500)
def test_killed_three_times_it_comes_to_the_same(file: Path, undisturbed: Path, tmp_path: Path) -> None:
    folder, total = tmp_path / "killed", written(undisturbed)
    moments = sorted(random.SystemRandom().sample(range(1, total - 1), 3))
    for moment in moments:
        child = command(file, folder, "--jobs", "2") if moment == moments[1] else command(file, folder)
        while child.poll() is None and written(folder) < moment:
            time.sleep(0.005)
        child.kill()
        assert child.wait() == -signal.SIGKILL, f"it was over before it could be killed at line {moment} of {total}"
    time.sleep(0.5)  # workers notice the death of their parent at once
    assert command(file, folder).wait() == 0
    assert numbers(folder) == numbers(undisturbed), f"killed at lines {moments} of {total}"
    if (table := undisturbed / "results.csv").exists():
        assert untimed(folder / "results.csv") == untimed(table)


def untimed(table: Path) -> list[dict[str, str]]:
    import csv

    with table.open(newline="") as text:
        return [{k: v for k, v in row.items() if "seconds" not in k} for row in csv.DictReader(text)]


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_two_processes_come_to_the_same(file: Path, undisturbed: Path, tmp_path: Path) -> None:
    assert command(file, tmp_path / "two", "--jobs", "2").wait() == 0
    assert numbers(tmp_path / "two") == numbers(undisturbed)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_each_run_is_what_it_is_alone(undisturbed: Path, tmp_path: Path) -> None:
    """What the runs of a study share changes none of them."""
    from prefopt.runs.folder import RunFolder
    from prefopt.runs.run import run

    for name in ("arms/PPO/seed-0", "arms/DPO/seed-0"):
        alone = tmp_path / "arms" / name.split("/")[1] / name.split("/")[2]
        run(RunFolder(undisturbed / name).recipe(), alone)
        assert numbers(tmp_path)[name] == numbers(undisturbed)[name]
