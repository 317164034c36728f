"""Tokenised rows to a `Batch`."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from prefopt.data.steps import ENDS, LABELS, step_ends, step_labels
from prefopt.data.tokenised import Tokenised
from prefopt.support.errors import PrefoptError
from prefopt.types import Batch


def collate(rows: Sequence[Tokenised], columns: Sequence[str] = ()) -> Batch:
    """B rows as one batch; K is the largest number of completions of a row, T the largest number of tokens.

    What an absent completion has is never to be read, but must not spoil arithmetic: token 0, mask False, score 0,
    preference ½, column 0. Scores and preference are there when every row has them.

    Args:
        rows: B of them.
        columns: names of the rows' columns to put in as tensors, shaped by their axes (`Example.axes`): [B, ...], [B, K, ...]
            or [B, K, T]. `row`, [B] int64, the number of each row's example, is always there; `step_ends`, [B, K, T] bool,
            where rows have steps.

    Raises:
        PrefoptError: a column that a row lacks, or that cannot be a tensor.
    """
    size = max((row.size for row in rows), default=0)
    length = max((len(ids) for row in rows for ids in row.completion_ids), default=0)
    completion_ids = torch.zeros(len(rows), size, length, dtype=torch.long)
    mask = torch.zeros(len(rows), size, length, dtype=torch.bool)
    for b, row in enumerate(rows):
        for k, ids in enumerate(row.completion_ids):
            completion_ids[b, k, : len(ids)] = torch.tensor(ids)
            mask[b, k, : len(ids)] = True if row.masks is None else torch.tensor(row.masks[k])
    tensors = {name: _column(rows, name, size, length) for name in columns if name not in ("row", LABELS)}
    if LABELS in columns:
        tensors[LABELS] = step_labels(rows, size, length)
    if any(row.step_ends is not None for row in rows):
        tensors[ENDS] = step_ends(rows, size, length)
    return Batch(
        prompt_ids=tuple(row.prompt_ids for row in rows),
        completion_ids=completion_ids,
        mask=mask,
        scores=_scores(rows, size),
        preference=_preference(rows, size),
        columns={"row": torch.tensor([row.row for row in rows], dtype=torch.long), **tensors},
        axes=rows[0].axes if rows else {},
    )


def _scores(rows: Sequence[Tokenised], size: int) -> Tensor | None:
    scores = torch.zeros(len(rows), size)
    for b, row in enumerate(rows):
        if row.scores is None or None in row.scores:
            return None
        scores[b, : row.size] = torch.tensor(row.scores)
    return scores


def _preference(rows: Sequence[Tokenised], size: int) -> Tensor | None:
    preference = torch.full((len(rows), size, size), 0.5)
    for b, row in enumerate(rows):
        if row.preference is None:
            return None
        preference[b, : row.size, : row.size] = torch.tensor(row.preference)
    return preference


def _column(rows: Sequence[Tokenised], name: str, size: int, length: int) -> Tensor:
    """[B, ...] for a column of prompts, [B, K, ...] for one of completions, [B, K, T] for one of tokens."""
    values = []
    for row in rows:
        if name not in row.columns:
            raise PrefoptError(
                f"{row.where}: no column {name!r}, which the objective needs; there are {sorted(row.columns)}"
            )
        value = row.columns[name]
        axis = row.example.axis(name)
        if axis == "prompt":
            values.append(_tensor(row, name, value))
        else:
            values.append(_padded(row, name, value, size, length if axis == "token" else None))
    shapes = {tuple(value.shape) for value in values}
    if len(shapes) > 1:
        odd = next(i for i, value in enumerate(values) if value.shape != values[0].shape)
        raise PrefoptError(
            f"column {name!r} has shape {list(values[0].shape)} in {rows[0].where} but {list(values[odd].shape)} in "
            f"{rows[odd].where}; it needs one shape everywhere"
        )
    # Stacking does not promote: a column of 1 and 0.5 holds both integers and floats.
    dtype = next((value.dtype for value in values if value.is_floating_point()), values[0].dtype)
    return torch.stack([value.to(dtype) for value in values])


def _padded(row: Tokenised, name: str, value: Any, size: int, length: int | None) -> Tensor:
    """[K, ...], the entries of absent completions 0; [K, T] where `length` is the T of a column of tokens."""
    tensors = [_tensor(row, name, item) for item in value]
    if length is not None:
        for tensor, ids in zip(tensors, row.completion_ids, strict=True):
            if tensor.shape != (len(ids),):
                raise PrefoptError(
                    f"{row.where}: column {name!r} has shape {list(tensor.shape)} for a completion of {len(ids)} "
                    "tokens; it needs one number for each of its tokens"
                )
        tensors = [torch.nn.functional.pad(tensor, (0, length - len(tensor))) for tensor in tensors]
    elif any(tensor.shape != tensors[0].shape for tensor in tensors):
        raise PrefoptError(
            f"{row.where}: column {name!r} has shapes {[list(tensor.shape) for tensor in tensors]} for its completions; "
            "it needs the same shape for each"
        )
    stacked = torch.stack(tensors)
    return torch.cat([stacked, stacked.new_zeros(size - len(stacked), *stacked.shape[1:])])


def _tensor(row: Tokenised, name: str, value: Any) -> Tensor:
    try:
        tensor = value if isinstance(value, Tensor) else torch.as_tensor(np.asarray(value))
    except (TypeError, ValueError):
        shown = repr(value)
        raise PrefoptError(
            f"{row.where}: column {name!r} is {shown[:60]}, which is no tensor; "
            "it needs numbers, in lists of equal length"
        ) from None
    return tensor.float() if tensor.is_floating_point() else tensor
