"""Work with its own precision and threads leaves the process as it was, and other work alone."""

import json
import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from _tiny import tiny_model, tiny_pairs
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from rich.console import Console

from prefopt import PrefoptError, load_recipe, run
from prefopt.recipe import Train
from prefopt.training.devices import computing, launched_processes, mixed_precision, refuse_environment


def state():
    """Everything that a run may not change for others."""
    return (
        torch.get_num_threads(),
        torch.get_default_dtype(),
        torch.get_rng_state().tolist(),
        np.random.get_state()[1].tolist(),
        random.getstate(),
        dict(AcceleratorState._shared_state),
        dict(GradientState._shared_state),
    )


@pytest.fixture(autouse=True)
def no_accelerator_is_left():
    """Accelerate's state is that of the process: nothing of other tests is seen here, and nothing of these by others."""
    _reset()
    yield
    _reset()


def _reset():
    AcceleratorState._reset_state()
    GradientState._reset_state()


@pytest.fixture
def recipe_file(tmp_path):
    content = {
        "policy": {"model": str(tiny_model(tmp_path / "lm"))},
        "source": {"data": str(tiny_pairs(tmp_path / "pairs.jsonl", rows=40))},
        "objective": "DPO",
        "train": {"steps": 2, "batch_size": 8, "lr": 1e-3, "checkpoint_every": 1},
        "evaluate": {"prompts": 2, "sampling": {"max_tokens": 4}},
    }
    (tmp_path / "recipe.yaml").write_text(json.dumps(content))
    return tmp_path / "recipe.yaml"


@pytest.mark.parametrize("error", [None, KeyboardInterrupt()])
def test_everything_is_as_it_was(error):
    own = Accelerator(cpu=True, mixed_precision="bf16")
    before = state()
    try:
        with computing(Train(steps=1, threads=2, precision="fp32")) as accelerator:
            assert accelerator.mixed_precision == "no" and torch.get_num_threads() == 2
            torch.set_default_dtype(torch.float64)
            torch.rand(1), np.random.rand(), random.random()
            if error is not None:
                raise error
    except KeyboardInterrupt:
        assert error is not None
    assert state() == before and own.mixed_precision == "bf16"


def test_two_runs_of_different_precision_and_threads_leave_each_other_alone(recipe_file, tmp_path):
    def losses(name, *overrides, resume=False):
        settings = load_recipe(recipe_file, overrides)
        folder = run(settings, folder=tmp_path / name, resume=resume, console=Console(quiet=True)).folder
        lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
        made = json.loads((folder / "manifest.json").read_text())["device"]
        return [line["loss"] for line in lines if "loss" in line], made["precision"], made["threads"]

    alone = losses("alone", "train.precision=fp32", "train.threads=1")
    before = state()
    half = losses("half", "train.precision=bf16", "train.threads={decoding: 1, scoring: 2, training: 2}")
    assert half[1:] == ("bf16", {"decoding": 1, "scoring": 2, "training": 2}) and half[0] != alone[0]
    assert losses("after", "train.precision=fp32", "train.threads=1") == alone
    assert state() == before


UNREADABLE = [
    ({"WORLD_SIZE": "abc"}, "WORLD_SIZE=abc in the environment must be a whole number, at least 1"),
    ({"WORLD_SIZE": ""}, "WORLD_SIZE= in the environment must be a whole number, at least 1"),
    ({"WORLD_SIZE": "0"}, "WORLD_SIZE=0 in the environment must be a whole number, at least 1"),
    ({"WORLD_SIZE": "2", "LOCAL_RANK": "1.5"}, "LOCAL_RANK=1.5 in the environment must be a whole number"),
    ({"RANK": "first"}, "RANK=first in the environment must be a whole number"),
    ({"LOCAL_RANK": "0"}, "LOCAL_RANK=0 in the environment says .* and WORLD_SIZE is not set: start with"),
    ({"ACCELERATE_USE_CPU": "banana"}, "ACCELERATE_USE_CPU=banana in the environment must be true or false"),
    ({"ACCELERATE_DEBUG_MODE": ""}, "ACCELERATE_DEBUG_MODE= in the environment must be true or false"),
]


@pytest.mark.parametrize(("variables", "message"), UNREADABLE, ids=str)
def test_an_environment_that_accelerate_cannot_read_is_refused_by_its_variable(variables, message, monkeypatch):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(PrefoptError, match=message), computing(Train(steps=1)):
        pass


@pytest.mark.parametrize(
    "variables",
    [
        {"WORLD_SIZE": "8"},
        {"WORLD_SIZE": "8", "RANK": "3", "LOCAL_RANK": "3", "MASTER_PORT": "29500"},
        {"LOCAL_RANK": "-1", "ACCELERATE_USE_CPU": "Yes"},
        {"LOCAL_RANK": "0", "OMPI_COMM_WORLD_SIZE": "1"},
    ],
    ids=str,
)
def test_what_launchers_set_is_let_pass(variables, monkeypatch):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    refuse_environment()
    assert launched_processes() == int(variables.get("WORLD_SIZE", 1))


@pytest.mark.parametrize(("major", "bf16"), [(7, False), (8, True)], ids=["V100", "A100"])
def test_auto_is_bf16_where_the_gpu_has_it_and_not_where_it_is_emulated(major, bf16, monkeypatch):
    """`torch.cuda.is_bf16_supported()` counts emulation (torch 2.13), which is slower than fp32."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(major=major))
    monkeypatch.setattr(torch.cuda, "_check_bf16_tensor_supported", lambda device: True)
    assert mixed_precision("auto") == ("bf16" if bf16 else "no")
    assert [mixed_precision(name) for name in ("fp32", "bf16", "fp16")] == ["no", "bf16", "fp16"]
