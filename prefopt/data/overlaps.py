"""Held-out rows whose prompt is trained on: what is measured on them is partly remembered."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from prefopt.data.example import Example, content_key
from prefopt.support.seeds import digested


class Overlap(NamedTuple):
    """How many held-out rows have a prompt that is trained on.

    Attributes:
        same: the very same prompt.
        near: one that differs in case and blanks alone.
        first: how messages name the first of either; empty where there is none.
    """

    same: int
    near: int
    first: str


def overlap(held_out: Sequence[Example], train: Sequence[Example]) -> Overlap:
    """Compares prompts by their hashes; texts without a prompt (format `text`) by the texts."""
    held, trained = _digests(held_out), _digests(train)
    same, alike = (np.isin(held[:, column], trained[:, column]) for column in (0, 1))
    near = alike & ~same
    first = held_out[int(np.argmax(same | near))].where if (same | near).any() else ""
    return Overlap(int(same.sum()), int(near.sum()), first)


def _digests(rows: Sequence[Example]) -> np.ndarray:
    """[rows, 2] of the prompt as it is, and of its words, whoever says them."""
    return digested((text for row in rows for text in _texts(row)), 2 * len(rows)).reshape(-1, 2)


def _texts(row: Example) -> tuple[str, str]:
    asked = row.prompt or (row.completions[0] if row.completions else "")
    words = [asked] if isinstance(asked, str) else [str(turn.get("content") or "") for turn in asked]
    return content_key(asked) + row.task, " ".join(" ".join(words).casefold().split()) + row.task
