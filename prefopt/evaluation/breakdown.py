"""Metrics broken down by a column of the held-out rows: `gold[source=movies]`, beside `gold` of all."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from prefopt.data import Tokenised
from prefopt.evaluation.intervals import Observations
from prefopt.support.errors import PrefoptError, nearest
from prefopt.support.terminal import one_line
from prefopt.types import axis_of

MOST = 20
"""Values of a column; a table of more is not read."""


class Measured(NamedTuple):
    """What was measured of rows.

    Attributes:
        values: [n] or [n, K]; NaN where a value is missing.
        rows: n of them.
        weights: like the values; None weighs all the same.
    """

    values: Tensor
    rows: Sequence[Tokenised]
    weights: Tensor | None = None

    def observations(self, kept: Sequence[bool] | None = None) -> Observations:
        """For intervals, of all rows or of those that are kept; without what is missing."""
        columns = 1 if self.values.ndim == 1 else self.values.shape[1]
        flat = self.values.double().cpu().flatten().numpy()
        heavy = np.ones_like(flat) if self.weights is None else self.weights.double().cpu().flatten().numpy()
        groups = np.repeat(np.array([row.example.group for row in self.rows], dtype=object), columns)
        known = ~np.isnan(flat)
        if kept is not None:
            known &= np.repeat(np.array(kept, dtype=bool), columns)
        return Observations(flat[known], heavy[known], groups[known].tolist())


def broken_down(measured: Mapping[str, Measured], by: Sequence[str]) -> dict[str, Observations]:
    """Every metric on all rows, then on the rows of each value of each column.

    Args:
        measured: by the metric's name.
        by: columns; rows that lack one are in none of its parts.
    """
    observed = {name: one.observations() for name, one in measured.items()}
    for column in by:
        for name, one in measured.items():
            values = [value_of(row.example.columns, column) for row in one.rows]
            for value in sorted({value for value in values if value is not None}):
                kept = [other == value for other in values]
                observed[part_name(name, column, value)] = one.observations(kept)
    return observed


def part_name(metric: str, column: str, value: str) -> str:
    """What a metric is called on the rows of one value."""
    return f"{metric}[{column}={value}]"


def value_of(columns: Mapping[str, Any], column: str) -> str | None:
    """A row's value as it is written in names of metrics; None where the row lacks it."""
    value = columns.get(column)
    return None if value is None else one_line(str(value))


def values_of(rows: Sequence[Any], column: str) -> list[str]:
    """The values that rows have in a column, sorted."""
    return sorted({value for row in rows if (value := value_of(row.columns, column)) is not None})


def check_by(by: Sequence[str], rows: Sequence[Any], part: str) -> None:
    """Refuse columns that cannot break metrics down.

    Args:
        by: the recipe's `evaluate.by`.
        rows: of the part of the data that tables show.
        part: its name.

    Raises:
        PrefoptError: no row has the column, it belongs to completions, or it has too many values.
    """
    known = sorted({name for row in rows for name in row.columns})
    for column in by:
        if column not in known:
            there = f" They have: {', '.join(known)}" if known else " They have no further column"
            raise PrefoptError(f"evaluate.by: no {part} row has a column {column!r}.{nearest(column, known)}{there}")
        axes = next(row.axes for row in rows if column in row.columns)
        if axis_of(column, axes) != "prompt" or any(
            isinstance(row.columns.get(column), list | tuple | dict) for row in rows
        ):
            raise PrefoptError(
                f"evaluate.by: the column {column!r} does not hold one word or number for each prompt, so that rows cannot be told "
                "apart by it"
            )
        if len(values := values_of(rows, column)) > MOST:
            raise PrefoptError(
                f"evaluate.by: the column {column!r} has {len(values)} values in the {part} rows ({', '.join(values[:3])}, …), and "
                f"a table of more than {MOST} parts says nothing: group them, by a function that `adapt: file.py:function` names"
            )
