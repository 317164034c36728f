"""Weights that are divided among two processes: the same updates, runs and resumes as of one process that has them whole."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sharded
import torch
from _small_vllm import small_vllm
from safetensors.torch import load_file
from test_train import relative, torchrun
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder in which two processes have done everything, in one start."""
    folder = tmp_path_factory.mktemp("sharded")
    sharded.prepare(folder)
    with small_vllm(folder / "lm") as (_, address):
        (folder / "vllm").write_text(address)
        torchrun(sharded.__file__, str(folder))
        yield folder


def lines(folder: Path) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in row.items() if name not in ("seconds", "padding")} for row in rows]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    files = sorted(folder.glob("*.safetensors"))
    return {f"{file.name} {name}": weight for file in files for name, weight in load_file(file).items()}


def assert_same(one: Path, other: Path, steps: bool = False) -> None:
    """The same numbers in all lines, or in those of `steps` alone, and the same weights, but for rounding."""
    rows = [[row for row in lines(folder) if "loss" in row or not steps] for folder in (one, other)]
    for mine, theirs in zip(*rows, strict=True):
        assert mine.keys() == theirs.keys()
        for name, value in mine.items():
            close = None if value is None else pytest.approx(theirs[name], rel=1e-5, abs=1e-7)
            assert (theirs[name] if value is None else value) == close, name
    mine, theirs = weights(one / "policy"), weights(other / "policy")
    assert mine.keys() == theirs.keys()
    assert all((mine[name] - theirs[name]).abs().max() < 1e-6 for name in mine)


@pytest.mark.slow
@pytest.mark.parametrize("case", sharded.SHARDED)
def test_an_update_is_that_of_one_process_and_each_holds_half(case: str, two: Path) -> None:
    whole, _, steps = sharded.update(case, shards=False)
    (update, held, theirs), (_, other, _) = (torch.load(two / f"updates-{rank}.pt")[case] for rank in (0, 1))
    assert whole.norm() > 1e-2
    assert relative(whole, update) <= 1e-9
    assert max(held, other) <= 0.55
    for mine, step in zip(steps, theirs, strict=True):
        for name in mine.keys() - {"padding"}:
            assert mine[name] == pytest.approx(step[name], rel=1e-9, abs=1e-12, nan_ok=True), name


@pytest.mark.slow
def test_a_loss_whose_rows_are_coupled_is_divided_by_the_rows_of_all(two: Path) -> None:
    right, _, _ = sharded.update("rpo", shards=False)
    wrong = torch.load(two / "updates-0.pt")["by own counts"]
    assert relative(right, wrong) > 0.1


@pytest.mark.slow
def test_processes_may_ask_sharded_models_different_numbers_of_times(two: Path) -> None:
    """Of two layers one is whole at a time, and one that gives up does not keep the other waiting."""
    for rank, refused in enumerate(["", "this one has had enough"]):
        asked = torch.load(two / f"updates-{rank}.pt")["asked apart"]
        assert asked["worst"] <= 1e-12
        assert (asked["whole"], asked["refused"]) == ({1}, refused)


@pytest.mark.slow
def test_models_with_a_state_write_the_same_completions_in_parts(two: Path) -> None:
    whole = sharded.draw_by_generate(shards=False)
    assert len({int((row != 0).sum()) for row in whole.flatten(0, 1)}) > 2
    assert all(torch.equal(whole, torch.load(two / f"updates-{rank}.pt")["by generate"]) for rank in (0, 1))


@pytest.mark.slow
def test_in_bf16_gradients_are_those_of_one_process_to_its_rounding(two: Path) -> None:
    one = sharded.run_one(two, "dpo", "bf16, one", *sharded.BF16)
    for mine, theirs in zip(lines(one), lines(two / "bf16, two" / "dpo"), strict=True):
        for name in mine.keys() & {"loss", "grad_norm"}:
            assert mine[name] == pytest.approx(theirs[name], rel=5e-3), name
    assert all(weight.dtype == torch.float32 for weight in weights(two / "bf16, two" / "dpo" / "policy").values())


@pytest.mark.slow
@pytest.mark.parametrize("name", sharded.RUNS)
def test_a_run_is_that_of_one_process(name: str, two: Path) -> None:
    one = sharded.run_one(two, name, "one")
    assert_same(one, two / "two" / name)
    for key in ("model", "others"):
        mine, theirs = (json.loads((folder / "manifest.json").read_text())[key] for folder in (one, two / "two" / name))
        assert mine == theirs
    auto = AutoModelForSequenceClassification if name == "reward model" else AutoModelForCausalLM
    auto.from_pretrained(two / "two" / name / "policy")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["dpo", "ppo"])
def test_a_run_goes_on_with_fewer_processes_and_with_more(name: str, two: Path) -> None:
    whole = sharded.run_one(two, name, "whole", "train.steps=5")
    shutil.copytree(two / "two" / name, two / "begun by two" / name)
    assert_same(whole, sharded.run_one(two, name, "begun by two", "train.steps=5", resume=True), steps=True)
    if name == "dpo":
        assert_same(whole, two / "begun by one" / name, steps=True)
