"""From a verdict to rows of data, in the formats that `source.data` reads (docs/data.md)."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from prefopt.data import Example
from prefopt.types import Verdict

Row = dict[str, Any]


def written_out(
    examples: Sequence[Example], verdict: Verdict, sharpness: float | None, provenance: Sequence[Mapping[str, Any]]
) -> list[Row]:
    """A row for each prompt: its completions, what the feedback thinks of them, and everything that was known before.

    No verdict is null, never a number. Judgements that the data had are kept under `given`.

    Args:
        examples: B prompts with K completions each.
        verdict: of them.
        sharpness: makes soft labels of scores where the feedback compares nothing.
        provenance: who said so, of each.
    """
    preference = preferences(verdict, sharpness)
    notes = verdict.notes or [{}] * len(examples)
    return [
        {
            "prompt": plainly(example.prompt),
            "completions": plainly(example.completions),
            "scores": plainly(verdict.scores[b]),
            **({} if preference is None else {"preference": plainly(preference[b])}),
            "group": example.group,
            **plainly(_kept(example)),
            **({"notes": plainly(notes[b])} if notes[b] else {}),
            "provenance": plainly(provenance[b]),
        }
        for b, example in enumerate(examples)
    ]


def preferences(verdict: Verdict, sharpness: float | None) -> Tensor | None:
    """[B, K, K] P(y_i beats y_j): the feedback's own, else σ(sharpness · (s_i − s_j)), else None.

    A pair of which nothing is known has ½, which claims nothing; the missing score says that it is not to be read.
    """
    if verdict.preference is not None:
        return verdict.preference
    if sharpness is None or verdict.scores.shape[1] < 2:
        return None
    scores = verdict.scores.double()
    return torch.sigmoid(sharpness * (scores[:, :, None] - scores[:, None, :])).nan_to_num(0.5)


def judged(row: Row) -> bool:
    """Whether there are verdicts enough to learn from: on all of a single completion, on two of several."""
    return sum(score is not None for score in row["scores"]) >= min(2, len(row["scores"]))


def _kept(example: Example) -> Row:
    """The other columns; what was said about the same completions before goes to `given`, for it is not this verdict."""
    columns = {
        name: value for name, value in example.columns.items() if name not in ("notes", "given", "label", "provenance")
    }
    given = {name: example.columns[name] for name in ("label", "provenance") if name in example.columns}
    given |= {"scores": example.scores} if example.scores is not None else {}
    given |= {"preference": example.preference} if example.preference is not None else {}
    return columns | ({"given": given} if given else {})


def plainly(value: Any) -> Any:
    """As JSON holds it: lists, text, numbers; NaN and infinity are null, what is nothing of the kind is its text."""
    if isinstance(value, Tensor | np.ndarray | np.generic):
        value = value.tolist()
    if isinstance(value, Mapping):
        return {str(key): plainly(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plainly(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, str | int) else str(value)
