"""Reading the values of a row: lists and numbers of any library, and messages that name the row and the column."""

import json
import math
import numbers
from collections.abc import Iterator, Mapping
from decimal import Decimal
from typing import Any, NoReturn

import numpy as np
from torch import Tensor

from prefopt.support.errors import PrefoptError


class Written(dict[str, Any]):
    """An object that was read from JSON text: a null in it was written there, while Arrow puts None where a row lacks a field."""


def read_json(text: str, where: str) -> Any:
    """The value of JSON text; its objects are `Written`.

    Raises:
        PrefoptError: it is no JSON, or nested too deeply.
    """
    try:
        return json.loads(text, object_pairs_hook=_object)
    except RecursionError:
        fail(where, "nested too deeply to be read")
    except json.JSONDecodeError as error:
        fail(where, f"not JSON: {error.msg} at character {error.pos + 1}")
    except ValueError as error:
        fail(where, f"not JSON: {error}")


def _object(pairs: list[tuple[str, Any]]) -> Written:
    made = Written(pairs)
    if len(made) < len(pairs):
        twice = next(key for i, (key, _) in enumerate(pairs) if any(key == other for other, _ in pairs[:i]))
        raise ValueError(f"the key {twice!r} stands twice in one object, and only one of its values could be read")
    return made


def plain(value: Any) -> Any:
    """The same in lists, dicts and Python's own scalars, at every depth; without the None that Arrow fills dicts with."""
    if isinstance(value, np.ndarray | np.generic | Tensor):
        value = value.tolist()
    if isinstance(value, Mapping):
        keep = isinstance(value, Written)
        return {str(key): plain(item) for key, item in value.items() if keep or item is not None}
    return [plain(item) for item in value] if isinstance(value, list | tuple) else value


def texts_in(value: Any) -> Iterator[str]:
    """Every text in a value, at any depth, keys included."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from texts_in(key)
            yield from texts_in(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from texts_in(item)


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
    if not isinstance(value, numbers.Real | Decimal) or isinstance(value, bool):
        fail(where, f"{name!r} must hold numbers, not {shown(value)}")
    try:
        number = float(value)
    except OverflowError:
        fail(where, f"{name!r} holds an integer that is too large for a float; give smaller numbers")
    if math.isinf(number):
        fail(where, f"{name!r} is infinite")
    return None if math.isnan(number) else number


def without_arrays(value: Any) -> Any:
    """Tensors, arrays and tuples as lists, NumPy scalars as numbers; anything else as it is."""
    if isinstance(value, np.ndarray | np.generic | Tensor):
        return value.tolist()
    return list(value) if isinstance(value, tuple) else value


def list_of(value: Any, name: str, where: str, what: str = "a list", remedy: str = "") -> list[Any]:
    """The value as a list; messages say that it must be `what`, and what to do."""
    value = without_arrays(value)
    if not isinstance(value, list):
        fail(where, f"{name!r} must be {what}, not {shown(value)}{'. ' * bool(remedy)}{remedy}")
    return value


def shown(value: Any) -> str:
    """Type and value for a message, at most 60 characters of it."""
    text = repr(value)
    kind = "dict" if isinstance(value, Written) else type(value).__name__
    return f"{kind} {text if len(text) <= 60 else text[:57] + '...'}"


def fail(where: str, message: str) -> NoReturn:
    """Raise a `PrefoptError` that begins with the row's place."""
    raise PrefoptError(f"{where}: {message}")
