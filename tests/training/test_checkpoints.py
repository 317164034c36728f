"""Checkpoints hold no objects, so that reading one executes nothing; a damaged one is named, and the one before is taken."""

import json
import os
import pickle
import pickletools
import shutil
import zipfile
from collections import deque
from pathlib import Path

import pytest
import torch
from _tiny import tiny_model, tiny_pairs

from prefopt import PrefoptError, load_recipe, run
from prefopt.runs.folder import RunFolder
from prefopt.training.checkpoints import check_state, checkpoints


class Writes:
    """Unpickled, it writes a file."""

    def __init__(self, file: Path):
        self.file = file

    def __reduce__(self):
        return os.mkdir, (str(self.file),)


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """A finished run with its checkpoints at steps 2 and 4 of 5, each with an adaptive objective's numbers."""
    home = tmp_path_factory.mktemp("home")
    content = {
        "policy": {"model": str(tiny_model(home / "lm")), "adapter": {"r": 2}},
        "source": {"data": str(tiny_pairs(home / "pairs.jsonl", rows=60))},
        "objective": "BCO",
        "train": {"steps": 5, "batch_size": 8, "lr": 1e-2, "checkpoint_every": 2, "keep_checkpoints": 2},
        "evaluate": {"prompts": 0},
    }
    (home / "recipe.yaml").write_text(json.dumps(content))
    return run(load_recipe(home / "recipe.yaml"), folder=home / "run").folder


@pytest.fixture
def interrupted(whole: Path, tmp_path: Path) -> Path:
    """The same run as a kill after its last checkpoint leaves it."""
    folder = shutil.copytree(whole, tmp_path / "run")
    for name in ("summary.json", "trained.json", "evaluations/test-step-000005.json"):
        (folder / name).unlink()
    shutil.rmtree(folder / "policy")
    return folder


def resume(folder: Path) -> Path:
    return run(load_recipe(folder / "recipe.yaml"), folder=folder, resume=True).folder


def losses(folder: Path) -> list[tuple[int, float]]:
    return [(line["step"], line["loss"]) for line in RunFolder(folder).history() if "loss" in line]


def same(one: Path, other: Path) -> bool:
    weights = "policy/adapter_model.safetensors"
    return losses(one) == losses(other) and (one / weights).read_bytes() == (other / weights).read_bytes()


def test_files_of_a_checkpoint_are_tensors_and_plain_values(whole):
    newest = checkpoints(whole / "checkpoints")[-1]
    assert {file.name for file in newest.iterdir()} == {
        "policy", "model.safetensors", "optimizer.pt", "trainer.pt", "random-0.pt",
    }  # fmt: skip
    for file in newest.glob("*.pt"):
        with zipfile.ZipFile(file) as parts:
            (name,) = [name for name in parts.namelist() if name.endswith("data.pkl")]
            globals_ = {
                argument
                for operation, argument, _ in pickletools.genops(parts.read(name))
                if operation.name == "GLOBAL"
            }
        assert {name.split()[0].split(".")[0] for name in globals_} <= {"torch", "numpy", "collections", "_codecs"}


def test_a_resume_goes_on_to_the_same_numbers(whole, interrupted):
    assert same(resume(interrupted), whole)


@pytest.mark.parametrize(
    "name", ["optimizer.pt", "trainer.pt", "random-0.pt", "optimizer.bin", "custom_checkpoint_0.pkl"]
)
@pytest.mark.parametrize("how", ["torch", "pickle"])
def test_an_object_in_a_checkpoint_is_never_made(interrupted, tmp_path, name, how):
    trap = tmp_path / "made"
    for checkpoint in checkpoints(interrupted / "checkpoints"):
        for present in {"optimizer.bin": ["optimizer.pt"], "custom_checkpoint_0.pkl": ["trainer.pt"]}.get(name, []):
            (checkpoint / present).unlink()
        if how == "torch":
            torch.save({"state": Writes(trap)}, checkpoint / name)
        else:
            (checkpoint / name).write_bytes(pickle.dumps({"state": Writes(trap)}))
    with pytest.raises(PrefoptError, match=rf"step-000004/{name} is damaged"):
        resume(interrupted)
    assert not trap.exists()


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.pt", "trainer.pt", "random-0.pt"])
@pytest.mark.parametrize("damage", ["cut", "empty", "foreign"])
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_is_taken(whole, interrupted, caplog, name, damage):
    file = interrupted / "checkpoints" / "step-000004" / name
    content = file.read_bytes()
    file.write_bytes({"cut": content[: len(content) // 2], "empty": b"", "foreign": b'{"a": 1}'}[damage])
    assert same(resume(interrupted), whole)
    assert f"step-000004/{name}" in caplog.text and "going on from the one before, step-000002" in caplog.text


def test_where_all_checkpoints_are_damaged_the_message_says_what_is_left(interrupted):
    for checkpoint in checkpoints(interrupted / "checkpoints"):
        (checkpoint / "trainer.pt").unlink()
    with pytest.raises(PrefoptError, match=r"step-000002/trainer.pt.*step-000004/trainer.pt.*or remove .*checkpoints"):
        resume(interrupted)
    shutil.rmtree(interrupted / "checkpoints")
    assert losses(resume(interrupted))[-1][0] == 5


def test_weights_of_another_model_do_not_fit(interrupted):
    from safetensors.torch import load_file, save_file

    file = interrupted / "checkpoints" / "step-000004" / "model.safetensors"
    tensors = load_file(file)
    name = next(iter(tensors))
    save_file({("other." + key if key == name else key): value for key, value in tensors.items()}, file)
    with pytest.raises(PrefoptError, match="step-000004 does not fit this recipe"):
        resume(interrupted)


def test_checkpoints_of_several_processes_and_of_accelerate_are_read(whole, interrupted):
    """The layout of earlier versions: accelerate's names of files, and those of weights under data parallelism."""
    from safetensors.torch import load_file, save_file

    for checkpoint in checkpoints(interrupted / "checkpoints"):
        tensors = load_file(checkpoint / "model.safetensors")
        save_file({f"module.{name}": value for name, value in tensors.items()}, checkpoint / "model.safetensors")
        state = torch.load(checkpoint / "trainer.pt", weights_only=False)
        state["objectives"] = [{"beta": 0.1, **fields} for fields in state["objectives"]]  # all fields, not what moved
        del state["asked_before"]
        torch.save(state, checkpoint / "custom_checkpoint_0.pkl")
        (checkpoint / "trainer.pt").unlink()
        (checkpoint / "optimizer.pt").rename(checkpoint / "optimizer.bin")
        (checkpoint / "random-0.pt").rename(checkpoint / "random_states_0.pkl")
    assert same(resume(interrupted), whole)


@pytest.mark.parametrize("state", [deque([1]), [lambda: 1], {"a": {"b": object()}}])
def test_a_state_that_would_have_to_be_pickled_is_refused_before_training(state):
    check_state({"source": {"numbers": [1, 2.5, None, "x", (True, b"y")], "tensors": {0: torch.ones(2)}}})
    with pytest.raises(PrefoptError, match=r"state of 'feedback' holds .*state_dict"):
        check_state({"feedback": state})
