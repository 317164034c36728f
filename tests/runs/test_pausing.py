"""What is asked to pause loses nothing: it goes on to the numbers of what was never asked."""

import json
from pathlib import Path

import pytest
from _tiny import tiny_model, tiny_pairs, tiny_recipe

from prefopt import load_label_recipe, load_recipe, run_study
from prefopt.runs.folder import RunFolder
from prefopt.runs.label import label
from prefopt.runs.pausing import Paused
from prefopt.runs.run import run
from prefopt.study import Study
from prefopt.study.status import read_status
from prefopt.support.terminal import Terminal

QUIET = Terminal(quiet=True)
TRAIN = "{{steps: 4, batch_size: 8, lr: 1e-3, threads: 1, checkpoint_every: {every}}}"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("home")
    tiny_model(home / "lm")
    tiny_pairs(home / "pairs.jsonl")
    return home


def recipe(home: Path, every: str = "null") -> Path:
    return tiny_recipe(home, home / "lm", home / "pairs.jsonl", train=TRAIN.format(every=every))


def asked_after(steps: int):  # type: ignore[no-untyped-def]
    """Is asked after every step, and says yes from this one on."""
    asked = iter(range(1, 100))
    return lambda: next(asked) >= steps


def numbers(folder: Path) -> tuple[object, object]:
    summary = RunFolder(folder).summary()
    lines = [{k: v for k, v in line.items() if k != "seconds"} for line in RunFolder(folder).history()]
    return summary["after"], lines


@pytest.mark.parametrize("every", ["null", "2", "3"])
def test_a_run_that_pauses_goes_on_to_the_same_numbers(home: Path, tmp_path: Path, every: str) -> None:
    settings = load_recipe(recipe(home, every))
    whole = run(settings, tmp_path / "whole", console=QUIET).folder
    folder = tmp_path / "paused"
    with pytest.raises(Paused):
        run(settings, folder, console=QUIET, pause=asked_after(2))
    assert [path.name for path in (folder / "checkpoints").iterdir()] == ["step-000002"]
    assert not RunFolder(folder).trained and not RunFolder(folder).failed
    with pytest.raises(Paused):
        run(settings, folder, resume=True, console=QUIET, pause=asked_after(1))
    run(settings, folder, resume=True, console=QUIET)
    assert numbers(folder) == numbers(whole)
    assert (folder / "checkpoints").exists() == (every != "null")


def test_after_its_last_step_a_run_comes_to_its_end(home: Path, tmp_path: Path) -> None:
    folder = run(load_recipe(recipe(home)), tmp_path / "run", console=QUIET, pause=asked_after(4)).folder
    assert RunFolder(folder).finished


def test_a_study_that_is_stopped_within_a_run_goes_on_with_it(home: Path, tmp_path: Path) -> None:
    """A callback of the run's own asks for it at its second step, as another terminal would."""
    folder = tmp_path / "study"
    (home / "asks.py").write_text(
        "from prefopt.cli import main\nfrom pathlib import Path\n"
        f"def stop(step):\n    mark = Path({str(tmp_path / 'asked')!r})\n"
        f"    if step.number == 2 and not mark.exists():\n        mark.touch(); main(['study', {str(folder)!r}, '--stop'])\n"
    )
    callbacks = {"train.callbacks": [f"{home / 'asks.py'}:stop"]}
    study = Study(
        recipe=str(recipe(home)),
        arms={"a": {}, "b": {"train.lr": 1e-4}},
        seeds=1,
        metric="nll",
        better="lower",
        common=callbacks,
    )
    run_study(study, folder, console=QUIET)
    first = folder / "arms" / "a" / "seed-0"
    assert [path.name for path in (first / "checkpoints").iterdir()] == ["step-000002"]
    assert not list(folder.rglob("error.txt")) and not (folder / "report.html").exists()
    assert [job.state for job in read_status(folder).jobs] == ["interrupted", "waiting"]
    run_study(study, folder, console=QUIET)
    assert (folder / "report.html").exists()
    whole = run(RunFolder(first).recipe(), tmp_path / "whole", console=QUIET).folder
    assert numbers(first) == numbers(whole)


def test_a_labelling_that_pauses_goes_on_after_its_batch(home: Path, tmp_path: Path) -> None:
    file = tmp_path / "label.yaml"
    (tmp_path / "rule.py").write_text(
        "def short(prompts, texts, rows):\n    return [[-len(t) for t in row] for row in texts]\n"
    )
    file.write_text(
        f"source: {{data: {home / 'pairs.jsonl'}}}\nfeedback: {tmp_path / 'rule.py'}:short\nbatch_size: 4\nprompts: 12\n"
    )
    settings, folder = load_label_recipe(file), tmp_path / "labels"
    with pytest.raises(Paused):
        label(settings, folder, QUIET, pause=asked_after(2))
    assert len((folder / "data.jsonl").read_text().splitlines()) == 8
    assert "finished" not in json.loads((folder / "manifest.json").read_text())
    assert label(settings, folder, QUIET).counts["prompts"] == 12
