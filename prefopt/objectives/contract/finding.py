"""What a check of the contract finds, and how messages show it."""

from typing import Any

from torch import Tensor

Finding = tuple[str, str, str]
"""What was expected, what came instead, and the likely cause."""


def difference(a: Tensor, b: Tensor) -> str:
    """Two results of one shape side by side, or their shapes."""
    if a.shape != b.shape:
        return f"shapes {list(a.shape)} and {list(b.shape)}"
    return f"{[round(x, 6) for x in b.tolist()]} instead of {[round(x, 6) for x in a.tolist()]}"


def shape_of(value: Any) -> str:
    """The shape of a tensor; of anything else its type."""
    return str(list(value.shape)) if isinstance(value, Tensor) else type(value).__name__
