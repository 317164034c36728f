"""The evaluation before training is made once for runs that start alike, and is what each of them would have measured."""

import json
from pathlib import Path
from typing import Any

import pytest
from _tiny import tiny_model, tiny_pairs, tiny_recipe
from rich.console import Console

from prefopt import recipe
from prefopt.evaluation.evaluator import Evaluator
from prefopt.recipe import load_recipe
from prefopt.runs.run import run
from prefopt.support.sharing import sharing_files

QUIET = Console(quiet=True)
LORA = "policy.adapter={r: 2}"


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    return tiny_recipe(folder, tiny_model(folder / "lm"), tiny_pairs(folder / "pairs.jsonl"))


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Models, one for each evaluation that is computed."""
    models: list[Any] = []
    compute = Evaluator.__call__

    def counting(self: Evaluator, model: Any) -> Any:
        models.append(model)
        return compute(self, model)

    monkeypatch.setattr(Evaluator, "__call__", counting)
    return models


def settings(file: Path, *changes: str) -> recipe.Recipe:
    return load_recipe(file, ["train.steps=1", *changes])


def start(folder: Path) -> str:
    return (folder / "evaluations" / "test-step-000000.json").read_text()


def shared(folder: Path) -> dict[str, str]:
    content: dict[str, Any] = json.loads((folder / "manifest.json").read_text())
    return content.get("shared", {})


def test_of_runs_that_start_alike_one_measures_and_all_say_what_they_would_alone(
    file: Path, tmp_path: Path, measured: list[Any]
) -> None:
    arms = {"DPO": (), "IPO": ("objective=IPO", "train.lr=1e-2")}
    for arm, changes in arms.items():
        run(settings(file, *changes), tmp_path / "alone" / arm, console=QUIET)
    assert len(measured) == 4
    with sharing_files(tmp_path / "study" / "shared"):
        for arm, changes in arms.items():
            run(settings(file, *changes), tmp_path / "study" / arm, console=QUIET)
    assert len(measured) == 7  # the start once, each end
    for arm in arms:
        for name in ("evaluations/test-step-000000.json", "evaluations/test-step-000001.json"):
            assert (tmp_path / "study" / arm / name).read_bytes() == (tmp_path / "alone" / arm / name).read_bytes()
    assert shared(tmp_path / "study" / "DPO") == {}
    assert shared(tmp_path / "study" / "IPO") == {"test": "DPO"}


@pytest.mark.parametrize("change", ["seed=1", "evaluate.sampling.temperature=0.5", "evaluate.rows=2", LORA])
def test_what_measures_or_is_measured_otherwise_is_measured_anew(
    change: str, file: Path, tmp_path: Path, measured: list[Any]
) -> None:
    with sharing_files(tmp_path / "shared"):
        run(settings(file, "train.steps=0"), tmp_path / "one", console=QUIET)
        run(settings(file, "train.steps=0", change), tmp_path / "other", console=QUIET)
    assert len(measured) == 2 and shared(tmp_path / "other") == {}


def test_adapters_that_start_alike_share_and_those_of_another_seed_do_not(
    file: Path, tmp_path: Path, measured: list[Any]
) -> None:
    with sharing_files(tmp_path / "shared"):
        for name, change in {"one": "seeds.order=0", "same": "seeds.order=1", "other": "seeds.init=1"}.items():
            run(settings(file, LORA, "train.steps=0", change), tmp_path / name, console=QUIET)
    assert len(measured) == 2 and shared(tmp_path / "same") == {"test": "one"}


def test_an_arm_without_a_reference_does_not_take_over_what_is_measured_against_one(
    file: Path, tmp_path: Path, measured: list[Any]
) -> None:
    with sharing_files(tmp_path / "shared"):
        for objective in ("DPO", "SFT"):
            changes = (LORA, "train.steps=0", "evaluate.prompts=0", f"objective={objective}")
            run(settings(file, *changes), tmp_path / objective, console=QUIET)
    assert "logratio_margin" in start(tmp_path / "DPO") and "logratio_margin" not in start(tmp_path / "SFT")


def test_a_damaged_file_is_measured_anew(file: Path, tmp_path: Path, measured: list[Any]) -> None:
    with sharing_files(tmp_path / "shared"):
        run(settings(file, "train.steps=0"), tmp_path / "one", console=QUIET)
        (kept,) = (tmp_path / "shared" / "evaluations").glob("*.json")
        kept.write_text(kept.read_text()[:-100])
        run(settings(file, "train.steps=0"), tmp_path / "other", console=QUIET)
    assert len(measured) == 2 and start(tmp_path / "other") == start(tmp_path / "one")
