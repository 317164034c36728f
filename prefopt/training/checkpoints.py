"""Checkpoints: written whole or not at all, through accelerate."""

import logging
import shutil
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from safetensors import SafetensorError

from prefopt.support.errors import PrefoptError
from prefopt.support.files import unused
from prefopt.types import Batch

# accelerate reports at every checkpoint that tied weights are stored once, which is how they should be.
logging.getLogger("accelerate.utils.other").setLevel(logging.ERROR)


def save_checkpoint(accelerator: Accelerator, folder: Path, step: int, keep: int) -> Path:
    """Write `folder/step-N`: trainable weights, optimiser, random states, and the objects registered for checkpointing.

    It appears under its name only when complete; then all but the newest `keep` are deleted. Called on every process.
    """
    target, staging = folder / f"step-{step:06d}", folder / f".writing-step-{step:06d}"
    if accelerator.is_main_process:
        shutil.rmtree(staging, ignore_errors=True)
        folder.mkdir(parents=True, exist_ok=True)
    accelerator.wait_for_everyone()
    hook = accelerator.register_save_state_pre_hook(_trainable_only)
    accelerator.save_state(str(staging))
    hook.remove()
    accelerator.wait_for_everyone()
    if accelerator.is_main_process and not target.exists():
        staging.rename(target)
        for old in checkpoints(folder)[:-keep]:
            shutil.rmtree(old)
    accelerator.wait_for_everyone()
    return target


def load_checkpoint(accelerator: Accelerator, checkpoint: Path) -> None:
    """Restore everything that `save_checkpoint` wrote.

    Raises:
        PrefoptError: the checkpoint does not fit the recipe.
    """
    try:
        accelerator.load_state(str(checkpoint), strict=False)  # frozen weights are not in it
    except (RuntimeError, KeyError, ValueError, OSError, SafetensorError) as error:
        raise PrefoptError(f"{checkpoint} does not fit this recipe: {str(error).splitlines()[0]}") from error


def checkpoints(folder: Path) -> list[Path]:
    """The complete ones, oldest first."""
    return sorted(folder.glob("step-*"))


def save_batch(batch: Batch, path: Path) -> Path:
    """Write a batch to `path` with the ending .pt, for `torch.load`; an older file of that name is kept."""
    content = vars(batch.to("cpu")) | {"prompt_ids": [list(prompt) for prompt in batch.prompt_ids]}
    path.parent.mkdir(parents=True, exist_ok=True)
    target = unused(path.with_suffix(".pt"))
    torch.save(content, target)
    return target


def _trainable_only(models: list[Any], weights: list[dict[str, Any]], folder: str) -> None:
    """The base model under an adapter is on disk already."""
    for model, state in zip(models, weights, strict=True):
        for name, parameter in model.named_parameters():
            if not parameter.requires_grad:
                state.pop(name, None)
