"""From a verdict to rows of data, in the formats that `source.data` reads (docs/data.md)."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from prefopt.data import Example
from prefopt.data.text_episodes import as_data
from prefopt.support.json_values import json_values
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
            "prompt": json_values(example.prompt),
            "completions": json_values(as_data(example)),
            "scores": json_values(verdict.scores[b]),
            **({} if preference is None else {"preference": json_values(preference[b])}),
            "group": example.group,
            **json_values(_kept(example)),
            **({"notes": json_values(notes[b])} if notes[b] else {}),
            "provenance": json_values(provenance[b]),
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
