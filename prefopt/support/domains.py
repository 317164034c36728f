"""The domains of numbers that recipes set: types of dataclass fields, which `plugins.checked_fields` holds values against.

A field that states its domain is refused while a recipe is planned, with its name, the domain and the value. None of them holds NaN
or infinity.
"""

from typing import Annotated

from pydantic import AfterValidator, Field

Finite = Annotated[float, Field(allow_inf_nan=False)]
"""Any number."""

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
"""Above 0."""

NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
"""0 or above."""

Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
"""From 0 to 1."""

PositiveShare = Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)]
"""Above 0, at most 1."""

Decay = Annotated[float, Field(ge=0, lt=1, allow_inf_nan=False)]
"""From 0, below 1: the weight of the past in a running average."""

Noise = Annotated[float, Field(ge=0, lt=0.5, allow_inf_nan=False)]
"""From 0, below ½: the probability that a label is the wrong way round."""

Count = Annotated[int, Field(gt=0)]
"""1 or above."""

LARGEST_FACTOR = 3.4e38
"""What a number of 32 bits can be: torch multiplies weights by it, and raises a RuntimeError for a larger one."""


def _factor(value: float) -> float:
    if value > LARGEST_FACTOR:
        raise ValueError(
            f"weights are multiplied by it in 32 bits, where a number is at most {LARGEST_FACTOR:g}; got {value:g}"
        )
    return value


Factor = Annotated[float, AfterValidator(_factor)]
"""At most `LARGEST_FACTOR`."""
