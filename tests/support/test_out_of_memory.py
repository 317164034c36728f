"""Running out of memory is recognised, and the message says which settings to lower."""

import pytest
import torch

from prefopt.support.errors import PrefoptError
from prefopt.support.out_of_memory import advising, is_out_of_memory

OUT_OF_MEMORY = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    MemoryError(),
    RuntimeError("MPS backend out of memory (MPS allocated: 8 GB)"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
]


@pytest.mark.parametrize("error", OUT_OF_MEMORY, ids=lambda error: str(error)[:20])
def test_memory_that_ran_out_is_recognised_and_answered_by_what_to_lower(error):
    assert is_out_of_memory(error)
    says = pytest.raises(PrefoptError, match=r"step 3: out of memory; lower a, b or c, or sell it \(")
    with says as raised, advising("step 3", ("a", "b", "c"), "sell it"):
        raise error
    assert raised.value.__cause__ is error


def test_what_torch_raises_on_a_cpu_is_recognised():
    with pytest.raises(PrefoptError, match="here: out of memory; lower it"), advising("here", ("it",)):
        torch.empty(2**60, dtype=torch.uint8)


@pytest.mark.parametrize("error", [RuntimeError("mat1 and mat2 shapes cannot be multiplied"), ValueError("memory")])
def test_other_errors_are_left_as_they_are(error):
    with pytest.raises(type(error)), advising("step 3", ("a",)):
        raise error
