"""Reading the values of a row: lists and numbers of any library, and messages that name the row and the column."""

import math
import numbers
from typing import Any, NoReturn

import numpy as np
from torch import Tensor

from prefopt.support.errors import PrefoptError


def one_per_completion(value: Any, name: str, size: int, where: str) -> list[Any]:
    """A list with one value for each of `size` completions; a single completion's value need not be in a list."""
    value = without_arrays(value)
    if size == 1 and not isinstance(value, list):
        value = [value]
    values = list_of(value, name, where)
    if len(values) != size:
        fail(where, f"{name!r} has {len(values)} values for {size} completions; it needs one for each")
    return values


def numbers_of(value: Any, name: str, size: int, where: str) -> tuple[float | None, ...]:
    """`size` numbers; see `number_of`."""
    values = list_of(value, name, where)
    if len(values) != size:
        fail(where, f"{name!r} has {len(values)} numbers for {size} completions")
    return tuple(number_of(item, name, where) for item in values)


def number_of(value: Any, name: str, where: str) -> float | None:
    """A finite float; None for None and NaN."""
    if value is None:
        return None
    if not isinstance(value, numbers.Real) or isinstance(value, bool):
        fail(where, f"{name!r} must hold numbers, not {shown(value)}")
    if math.isinf(value):
        fail(where, f"{name!r} is infinite")
    return None if math.isnan(value) else float(value)


def without_arrays(value: Any) -> Any:
    """Tensors, arrays and tuples as lists, NumPy scalars as numbers; anything else as it is."""
    if isinstance(value, np.ndarray | np.generic | Tensor):
        return value.tolist()
    return list(value) if isinstance(value, tuple) else value


def list_of(value: Any, name: str, where: str, what: str = "a list") -> list[Any]:
    """The value as a list; messages say that it must be `what`."""
    value = without_arrays(value)
    if not isinstance(value, list):
        fail(where, f"{name!r} must be {what}, not {shown(value)}")
    return value


def shown(value: Any) -> str:
    """Type and value for a message, at most 60 characters of it."""
    text = repr(value)
    return f"{type(value).__name__} {text if len(text) <= 60 else text[:57] + '...'}"


def fail(where: str, message: str) -> NoReturn:
    """Raise a `PrefoptError` that begins with the row's place."""
    raise PrefoptError(f"{where}: {message}")
