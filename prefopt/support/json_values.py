"""Values that JSON can hold."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import Tensor

Number = float | int


def json_values(value: Any) -> Any:
    """The value as JSON holds it: mappings, lists, text and numbers.

    Tensors, arrays and tuples become lists, keys become text. NaN and infinity become None, because JSON has neither. Anything
    else becomes its `str`.
    """
    if isinstance(value, Tensor | np.ndarray | np.generic):
        value = value.tolist()
    if isinstance(value, Mapping):
        return {str(key): json_values(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [json_values(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, str | int) else str(value)
