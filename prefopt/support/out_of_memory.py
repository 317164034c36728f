"""Running out of memory: how it is recognised, and the sentence that says which settings need less."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch

from prefopt.support.errors import PrefoptError

SIGNS = (
    "out of memory",  # CUDA, HIP, XPU and MPS where they raise a plain RuntimeError
    "can't allocate memory",  # torch's allocator on a CPU
    "not enough memory",  # the same on Windows
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
    "Allocation failed",  # PT_DEVMEM, of Gaudi
)
"""What libraries write in a RuntimeError that means nothing else (torch 2.13)."""

TRAINING = ("train.micro_batch_size", "train.micro_tokens", "source.max_prompt_tokens", "source.max_completion_tokens")
LOADING = ("policy.dtype or reference.dtype to bfloat16",)
ROLLOUTS = ("source.rollouts.batch_size", "source.rollouts.sampling.max_tokens")
EVALUATION = ("evaluate.batch_size", "evaluate.sampling.max_tokens", "evaluate.completions")
LABELLING = ("batch_size", "samples.batch_size", "samples.sampling.max_tokens", "max_prompt_tokens")
SAMPLING = ("--number", "--completions", "evaluate.batch_size", "evaluate.sampling.max_tokens")
"""Settings that need less memory when they are lower, those first that change no result."""
OTHERWISE = "set policy.gradient_checkpointing: true, or train an adapter (policy.adapter: {})"
"""What else helps in training."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that memory ran out, on a device or on the machine."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in SIGNS)


def reraise_out_of_memory(error: BaseException) -> None:
    """Pass on an exception that says that memory ran out.

    For the checks that take an exception for a sign that a model's architecture does not allow a faster way to compute: memory
    says nothing of that, and must not be remembered as if it did.
    """
    if is_out_of_memory(error):
        raise error


@contextmanager
def advising(doing: str, lower: Sequence[str], otherwise: str = "") -> Iterator[None]:
    """Say which settings to lower where the work inside runs out of memory.

    Args:
        doing: what is being done, as the message begins.
        lower: settings that need less memory when they are lower, the first to try first.
        otherwise: what else helps, as a clause.

    Raises:
        PrefoptError: memory ran out.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        first = next(iter(str(error).strip().splitlines()), "") or type(error).__name__
        advice = f"lower {' or '.join([', '.join(lower[:-1]), lower[-1]] if len(lower) > 1 else lower)}"
        raise PrefoptError(
            f"{doing}: out of memory; {advice}{f', or {otherwise}' if otherwise else ''} ({first})"
        ) from error
