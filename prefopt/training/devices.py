"""Devices, processes and precision."""

from typing import Protocol

import torch
from accelerate import Accelerator


class Precise(Protocol):
    """A section that says in which arithmetic models compute."""

    @property
    def precision(self) -> str: ...  # noqa: D102


def make_accelerator(settings: Precise) -> Accelerator:
    """Devices, processes and precision, from the environment and the recipe."""
    bf16 = settings.precision == "bf16" or (
        settings.precision == "auto" and torch.cuda.is_available() and torch.cuda.is_bf16_supported()
    )
    # Without cpu=True, accelerate takes the processes of a CPU-only torchrun for strangers to each other.
    # MPS has no float64, in which sampling noise and metrics are made.
    cpu = not torch.accelerator.is_available() or torch.backends.mps.is_available()
    return Accelerator(cpu=cpu, mixed_precision="bf16" if bf16 else "no", gradient_accumulation_steps=1)


def leave_processes() -> None:
    """Take leave of the other processes; a program that just ends may be aborted by their threads."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
