"""Devices, processes and precision of one piece of work, which leaves the process as it found it."""

import os
import random
import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import replace
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from accelerate.utils import GradientAccumulationPlugin, InitProcessGroupKwargs, broadcast_object_list
from rich.console import Console

from prefopt import recipe
from prefopt.support.errors import PrefoptError
from prefopt.support.system_errors import system_sentence
from prefopt.support.terminal import Terminal
from prefopt.support.threads import PhaseThreads, threads_restored, use

T = TypeVar("T")

CPU_TOKENS = 4096
"""In one forward pass on a CPU: more make nothing faster (experiments/speed), and take memory, 1.6 MB each of SmolLM2-135M."""

SHARDING = {
    "ACCELERATE_USE_FSDP": "FSDP",
    "ACCELERATE_USE_DEEPSPEED": "DeepSpeed",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM",
    "PARALLELISM_CONFIG_DP_SHARD_SIZE": "FSDP",
    "PARALLELISM_CONFIG_TP_SIZE": "tensor parallelism",
    "PARALLELISM_CONFIG_CP_SIZE": "context parallelism",
    "PARALLELISM_CONFIG_SP_SIZE": "sequence parallelism",
}
"""Variables by which `accelerate launch`, or whoever calls torchrun, asks for a model in parts (accelerate 1.15). Sizes ask for it
above 1, where ACCELERATE_USE_PARALLELISM_CONFIG is true, and not otherwise."""


NUMBERS = {"WORLD_SIZE": 1, "LOCAL_WORLD_SIZE": 1, "RANK": -1, "LOCAL_RANK": -1, "MASTER_PORT": 0}
"""Variables in which launchers count processes, and the least that they may be; accelerate and torch take them by `int`."""

SIZES = ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")
"""Where launchers put the number of processes."""

FLAGS = (
    "ACCELERATE_USE_CPU",
    "ACCELERATE_USE_FSDP",
    "ACCELERATE_DEBUG_MODE",
    "ACCELERATE_CPU_AFFINITY",
    "FORK_LAUNCHED",
)
"""Variables that accelerate 1.15 takes for yes or no, and fails on where they are neither."""

YES, NO = ("1", "true", "yes", "y", "t", "on"), ("0", "false", "no", "n", "f", "off")


def refuse_environment() -> None:
    """Refuse, before anything is loaded, an environment that accelerate cannot read or that would cut the model into parts.

    Raises:
        PrefoptError: names the variable, and says what to do.
    """
    for name, least in NUMBERS.items():
        value = os.environ.get(name)
        if value is not None and (re.fullmatch(r"\s*[+-]?\d{1,9}\s*", value) is None or int(value) < least):
            raise PrefoptError(
                f"{name}={value} in the environment must be a whole number, at least {least}: `accelerate launch` and torchrun set "
                "it; without them, unset it"
            )
    for name in FLAGS:
        if (value := os.environ.get(name)) is not None and value.lower() not in YES + NO:
            raise PrefoptError(f"{name}={value} in the environment must be true or false; set it so, or unset it")
    if int(os.environ.get("LOCAL_RANK", -1)) >= 0 and not any(name in os.environ for name in SIZES):
        raise PrefoptError(
            f"LOCAL_RANK={os.environ['LOCAL_RANK']} in the environment says that this is one of several processes, and WORLD_SIZE "
            "is not set: start with `accelerate launch` or torchrun, or unset LOCAL_RANK"
        )
    _refuse_sharding()


def launched_processes() -> int:
    """How many processes `accelerate launch` or torchrun started, as WORLD_SIZE says; 1 without them."""
    return int(os.environ.get("WORLD_SIZE", 1))


def computes_on_cpu() -> bool:
    """Whether models will be on the CPU: there is no accelerator that prefopt uses, or ACCELERATE_USE_CPU asks for none.

    MPS has no float64, in which sampling noise and metrics are made.
    """
    asked = os.environ.get("ACCELERATE_USE_CPU", "").lower() in YES
    return asked or not torch.accelerator.is_available() or torch.backends.mps.is_available()


def tokens_at_once(settings: recipe.Train) -> int | None:
    """Most tokens in one forward pass: `micro_tokens`, else on CPUs what is fastest there; None for any number."""
    return settings.micro_tokens or (CPU_TOKENS if computes_on_cpu() else None)


def _refuse_sharding() -> None:
    """Refuse what would cut the model into parts.

    Accelerate takes it from the environment, in which `accelerate launch` puts what its configuration file says. On CPUs it
    makes plain data-parallel models of FSDP without a word, so that what it made of the environment says nothing.

    Raises:
        PrefoptError: names the variable, and says how to start instead.
    """
    for name, what in SHARDING.items():
        value = os.environ.get(name, "").strip().lower()
        if name.endswith("_SIZE"):
            parallel = os.environ.get("ACCELERATE_USE_PARALLELISM_CONFIG", "").lower() == "true"
            asked = parallel and value.isdigit() and int(value) > 1
        else:
            asked = value in YES
        if asked:
            raise PrefoptError(
                f"{what} is asked for ({name}={os.environ[name]} in the environment, where `accelerate launch` puts what its "
                "configuration says), and in prefopt the recipe says whether weights are sharded: start with `accelerate launch "
                "--multi_gpu` or torchrun, without it, and write train.shard: fsdp2. Less memory, too: policy.adapter, "
                "policy.gradient_checkpointing, a smaller train.micro_batch_size"
            )


class Arithmetic(Protocol):
    """A section that says how models compute."""

    @property
    def precision(self) -> str: ...  # noqa: D102
    @property
    def threads(self) -> Any: ...  # noqa: D102


@contextmanager
def computing(settings: Arithmetic, offload: bool = False) -> Iterator[Accelerator]:
    """Devices, processes, precision and CPU threads for one run, evaluation or labelling.

    On leaving, the process is as it was: CPU threads, default dtype, random states and accelerate's own state. Accelerate fixes
    the precision for a whole process, so without this a second run could not have another one, nor could a caller that uses
    accelerate itself.

    Args:
        settings: of the recipe. Where `threads` is a number, computing begins with it; `runs/threads.py` then gives each phase its
            own.
        offload: whether processes with GPUs also exchange what their CPUs hold.

    Raises:
        PrefoptError: the environment asks for sharded weights, or cannot be read.
    """
    refuse_environment()
    with _restored():
        if isinstance(settings.threads, int):
            torch.set_num_threads(settings.threads)
        elif settings.threads is not None:
            use(replace(PhaseThreads.alike(torch.get_num_threads()), **settings.threads.fixed))
        yield make_accelerator(settings.precision, offload)


def mixed_precision(precision: str) -> str:
    """A recipe's precision here, as accelerate calls it: no (fp32), bf16 or fp16.

    auto is bf16 on GPUs that have it, and not on those that emulate it, as GPUs before Ampere do.
    """
    if precision == "auto":
        has_bf16 = torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
        precision = "bf16" if has_bf16 else "fp32"
    return "no" if precision == "fp32" else precision


def make_accelerator(precision: str, offload: bool = False) -> Accelerator:
    """Devices and processes from the environment, and everything that changes an update from the recipe.

    Args:
        precision: fp32, bf16, fp16, or auto, which is bf16 on GPUs that have it.
        offload: whether processes with GPUs also exchange what their CPUs hold, which NCCL does not.
    """
    cpu = computes_on_cpu()
    accelerator = Accelerator(
        # Without cpu=True, accelerate takes the processes of a CPU-only torchrun for strangers to each other.
        cpu=cpu,
        mixed_precision=mixed_precision(precision),
        # A number would be replaced by that of the launcher's environment, and so would a backend that is not given.
        gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),
        dynamo_backend="no",
        kwargs_handlers=[InitProcessGroupKwargs(backend="cuda:nccl,cpu:gloo")] if offload and not cpu else None,
    )
    if accelerator.mixed_precision == "fp16":
        # accelerate 1.15 computes in fp32 on CPUs then, without a word. The training loop scales its loss itself, everywhere.
        accelerator.native_amp, accelerator.scaler = True, None
    return accelerator


def on_main_process(accelerator: Accelerator, call: Callable[[], T]) -> T:
    """What a call returns on the main process, the only one to make it; all processes get the answer.

    Raises:
        Exception: on the main process, whatever the call raised.
        PrefoptError: on the others then, so that they do not wait for ever.
    """
    answer: list[Any] = [None, ""]
    raised: Exception | None = None
    if accelerator.is_main_process:
        try:
            answer[0] = call()
        except Exception as error:
            raised, answer[1] = error, system_sentence(error) or str(error) or type(error).__name__
    result, wrong = broadcast_object_list(answer)
    if raised is not None:
        raise raised
    if wrong:
        raise PrefoptError(wrong)
    return result


def of_main_process(accelerator: Accelerator, console: Console) -> Console:
    """The console on the main process, and a silent one on the others: what concerns all is said once."""
    return console if accelerator.is_main_process else Terminal(quiet=True)


@contextmanager
def entered_on_main_process(accelerator: Accelerator, context: Callable[[], AbstractContextManager[T]]) -> Iterator[T]:
    """A context, such as a lock, that the main process enters and leaves for all; what it gives is the same on every process.

    Raises:
        PrefoptError: on every process, where entering raised one.
    """
    with ExitStack() as stack:
        yield on_main_process(accelerator, lambda: stack.enter_context(context()))


def end_processes() -> None:
    """Close the connection to the other processes; a program that just ends may be aborted by their threads."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


@contextmanager
def _restored() -> Iterator[None]:
    """Accelerate's state empty, and on leaving everything as it was."""
    dtype, generators = torch.get_default_dtype(), _random_states()
    shared = (AcceleratorState._shared_state, GradientState._shared_state)  # accelerate 1.15; there is no public way
    before = [dict(state) for state in shared]
    for state in shared:
        state.clear()
    try:
        with threads_restored():
            yield
    finally:
        for state, content in zip(shared, before, strict=True):
            state.clear()
            state.update(content)
        torch.set_default_dtype(dtype)
        _set_random_states(generators)


def _random_states() -> tuple[Any, ...]:
    gpus = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else None
    return random.getstate(), np.random.get_state(), torch.get_rng_state(), gpus


def _set_random_states(states: tuple[Any, ...]) -> None:
    python, numpy, cpu, gpus = states
    random.setstate(python)
    np.random.set_state(numpy)
    torch.set_rng_state(cpu)
    if gpus is not None:
        torch.cuda.set_rng_state_all(gpus)
