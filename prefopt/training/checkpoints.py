"""Checkpoints: written whole or not at all, and read without executing anything that is in them.

Weights are safetensors, in the Hugging Face format as well (`training.weights`). All other states are tensors, arrays and plain
values, which torch reads with `weights_only`: it makes nothing else, whatever a file asks for. Older checkpoints, which accelerate
wrote, are read in the same way.
"""

import io
import logging
import pickle
import random
import shutil
import zipfile
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object
from torch import Tensor
from torch.serialization import get_unsafe_globals_in_checkpoint, safe_globals

from prefopt.policy.compat import is_sharded
from prefopt.policy.sharding import divided_like, whole_state, whole_weights
from prefopt.support.errors import PrefoptError
from prefopt.support.files import unused
from prefopt.support.system_errors import naming
from prefopt.training.weights import DAMAGED, damaged, fit, read_weights, write_weights
from prefopt.types import Batch

log = logging.getLogger(__name__)

OPTIMISER = ("optimizer.pt", "optimizer.bin")
TRAINER = ("trainer.pt", "custom_checkpoint_0.pkl")
RANDOM = ("random-{}.pt", "random_states_{}.pkl")
"""Names of files: the present one, and that of older checkpoints."""


class Trainer(Protocol):
    """What a checkpoint is of."""

    model: Any
    optimizer: Any
    accelerator: Accelerator

    def state_dict(self) -> dict[str, Any]: ...  # noqa: D102
    def load_state_dict(self, state: Mapping[str, Any]) -> None: ...  # noqa: D102


class Contents(NamedTuple):
    """A checkpoint in memory.

    Attributes:
        weights: the trainable ones, and buffers, by name.
        optimiser: its state.
        trainer: places in the sources, running numbers, the schedule.
        random: states of the generators of this process; empty where it had no part in writing the checkpoint.
    """

    weights: Mapping[str, Tensor]
    optimiser: dict[str, Any]
    trainer: dict[str, Any]
    random: dict[str, Any]


def save_checkpoint(trainer: Trainer, folder: Path, step: int, keep: int) -> Path:
    """Write `folder/step-N`: the model, optimiser, random states, and the trainer's own state.

    It appears under its name only when complete; then all but the newest `keep` are deleted. Called on every process.

    Raises:
        PrefoptError: the trainer's state holds something that would have to be pickled.
    """
    accelerator = trainer.accelerator
    target, staging = folder / f"step-{step:06d}", folder / f".writing-step-{step:06d}"
    if accelerator.is_main_process:
        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir(parents=True)
    accelerator.wait_for_everyone()
    with naming(target):
        torch.save(_random_states(), staging / RANDOM[0].format(accelerator.process_index))
        model = accelerator.unwrap_model(trainer.model)
        with whole_weights(model, accelerator=accelerator, trained=True):
            if accelerator.is_main_process:
                write_weights(model, staging)
        optimiser = whole_state(trainer.optimizer.state_dict())
        if accelerator.is_main_process:
            torch.save(optimiser, staging / OPTIMISER[0])
            state = trainer.state_dict()
            check_state(state)
            torch.save(state, staging / TRAINER[0])
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        if target.exists():  # it was damaged, or the run would not have gone on from before it
            shutil.rmtree(target)
        staging.rename(target)
        for old in checkpoints(folder)[:-keep]:
            shutil.rmtree(old)
    accelerator.wait_for_everyone()
    return target


def check_state(state: Mapping[str, Any]) -> None:
    """Refuse what a checkpoint cannot hold; called before training, too.

    Raises:
        PrefoptError: an objective, a feedback or an order has another object than numbers, texts, tensors and arrays, in lists
            and dicts, in its state.
    """
    for part, value in state.items():
        content = io.BytesIO()
        try:
            torch.save(_without_tensors(value), content)
            content.seek(0)
            with _safe():
                strange = get_unsafe_globals_in_checkpoint(content)
        except (pickle.PicklingError, TypeError, AttributeError) as error:
            strange = [str(error)]
        if strange:
            raise PrefoptError(
                f"the state of {part!r} holds {', '.join(strange)}, and a checkpoint holds no objects that would have to be "
                "pickled: return numbers, texts, tensors and arrays, in lists and dicts, from state_dict(); an objective keeps "
                "them as its fields"
            )


def load_newest(trainer: Trainer, folder: Path) -> int | None:
    """Restore the newest checkpoint that can be read, with a warning about those that cannot; called on every process.

    Returns:
        Its step; None where there is no checkpoint.

    Raises:
        PrefoptError: there are checkpoints, and none can be read; or the newest that can does not fit the recipe.
    """
    found = checkpoints(folder)
    problems: list[str] = []
    for checkpoint in reversed(found):
        contents, problem = _read_by_all(checkpoint, trainer.accelerator)
        if contents is not None:
            for line in problems if trainer.accelerator.is_main_process else ():
                log.warning("%s; going on from the one before, %s", line, checkpoint.name)
            _restore(trainer, contents, checkpoint)
            return step_of(checkpoint)
        problems.append(problem)
    if problems:
        raise PrefoptError(
            f"{'; '.join(reversed(problems))}. Restore it, or remove {folder}, and the run begins again at step 0 in its folder "
            "(train.keep_checkpoints=2 keeps an earlier one)"
        )
    return None


def checkpoints(folder: Path) -> list[Path]:
    """The complete ones, oldest first."""
    return sorted((path for path in folder.glob("step-*") if path.is_dir() and step_of(path) is not None), key=step_of)


def step_of(checkpoint: Path) -> Any:
    """The number in a name like step-000040; None where it has none."""
    digits = checkpoint.name.removeprefix("step-")
    return int(digits) if digits.isdecimal() else None


def save_batch(batch: Batch, path: Path) -> Path:
    """Write a batch to `path` with the ending .pt, for `torch.load`; an older file of that name is kept."""
    content = vars(batch.to("cpu")) | {"prompt_ids": [list(prompt) for prompt in batch.prompt_ids]}
    path.parent.mkdir(parents=True, exist_ok=True)
    target = unused(path.with_suffix(".pt"))
    torch.save(content, target)
    return target


def _read_by_all(checkpoint: Path, accelerator: Accelerator) -> tuple[Contents | None, str]:
    """A checkpoint, if every process can read it; else what the first that cannot says."""
    contents, problem = None, ""
    try:
        contents = _read(checkpoint, accelerator.process_index)
    except PrefoptError as error:
        problem = str(error)
    problems = [problem for problem in gather_object([problem]) if problem]
    problems = broadcast_object_list([problems])[0]
    return (None, problems[0]) if problems else (contents, "")


def _read(checkpoint: Path, process: int) -> Contents:
    """All files of a checkpoint.

    Raises:
        PrefoptError: one is missing, damaged, or holds objects.
    """
    weights = read_weights(checkpoint)
    tensors = {name.removeprefix("module."): tensor for name, tensor in weights.items()}  # so older ones of processes
    own = _file(checkpoint, tuple(name.format(process) for name in RANDOM))
    state = _plain(own) if own.exists() or not process else {}  # there are more processes than before
    return Contents(tensors, _plain(_file(checkpoint, OPTIMISER)), _plain(_file(checkpoint, TRAINER)), state)


def _file(checkpoint: Path, names: tuple[str, ...]) -> Path:
    """The first of these files that is there, else the name of the first."""
    return next((checkpoint / name for name in names if (checkpoint / name).exists()), checkpoint / names[0])


def _plain(file: Path) -> dict[str, Any]:
    """Tensors, arrays and plain values of a file; nothing else is made of it.

    Raises:
        PrefoptError: it is missing or damaged, or holds other objects.
    """
    try:
        if not zipfile.is_zipfile(file):  # as torch.save writes it; a bare pickle is of nobody's making here
            raise EOFError("it is missing, cut, or no file of torch.save")
        with _safe():
            content = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if "Unsupported global" in str(error) or "weights_only" in str(error):
            raise PrefoptError(
                f"{file} is damaged, or holds objects other than tensors and plain values, which are not loaded"
            ) from error
        raise damaged(file, error) from error
    except DAMAGED as error:
        raise damaged(file, error) from error
    if not isinstance(content, dict):
        raise PrefoptError(f"{file} is no part of a checkpoint: it holds a {type(content).__name__}")
    return content


def _restore(trainer: Trainer, contents: Contents, checkpoint: Path) -> None:
    """Put what was read where it belongs.

    Raises:
        PrefoptError: the checkpoint does not fit the recipe.
    """
    try:
        fit(trainer.accelerator.unwrap_model(trainer.model), contents.weights)
        trainer.optimizer.load_state_dict(_divided(contents.optimiser, trainer.optimizer))
        trainer.load_state_dict(contents.trainer)
        _set_random_states(contents.random)
    except DAMAGED as error:
        first = next(iter(str(error.args[0] if error.args else error).splitlines()), "")
        raise PrefoptError(
            f"{checkpoint} does not fit this recipe ({first}): resume with the recipe and the base model that the run began "
            "with, or begin anew in another folder"
        ) from error


def _divided(state: dict[str, Any], optimizer: Any) -> dict[str, Any]:
    """An optimiser's state, whole as it was saved, divided as its weights are."""
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    if not is_sharded(weights):
        return state
    numbers = [number for group in state["param_groups"] for number in group["params"]]
    divided = {
        number: {
            name: divided_like(value, weight) if isinstance(value, Tensor) else value
            for name, value in state["state"][number].items()
        }
        for number, weight in zip(numbers, weights, strict=True)
        if number in state["state"]
    }
    return {**state, "state": divided}


def _random_states() -> dict[str, Any]:
    return {
        "random_state": random.getstate(),
        "numpy_random_seed": np.random.get_state(),
        "torch_manual_seed": torch.get_rng_state(),
        "torch_cuda_manual_seed": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def _set_random_states(states: Mapping[str, Any]) -> None:
    if not states:
        return
    random.setstate(states["random_state"])
    np.random.set_state(states["numpy_random_seed"])
    torch.set_rng_state(states["torch_manual_seed"])
    gpus = states.get("torch_cuda_manual_seed")
    if gpus and len(gpus) == torch.cuda.device_count():  # on another number of GPUs each keeps the state it has
        torch.cuda.set_rng_state_all(gpus)


def _safe() -> AbstractContextManager[Any]:
    """The only objects beside tensors and plain values: arrays and numbers of NumPy, which hold data and run nothing."""
    from numpy._core.multiarray import _reconstruct, scalar

    kinds = {type(np.dtype(code)) for code in np.typecodes["All"] if code not in "O"}
    return safe_globals([_reconstruct, scalar, np.ndarray, np.dtype, *kinds])


def _without_tensors(value: Any) -> Any:
    """The same with None for tensors, whose bytes need no check."""
    if isinstance(value, Tensor):
        return None
    if type(value) is dict:
        return {key: _without_tensors(item) for key, item in value.items()}
    return type(value)(map(_without_tensors, value)) if type(value) in (list, tuple) else value
