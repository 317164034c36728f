"""Held-out rows as the evaluation reads them: as pairs, as their best completions, and as prompts."""

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from prefopt.data import Tokenised
from prefopt.data.selecting import Selectable, select_checked
from prefopt.support.errors import PrefoptError
from prefopt.support.seeds import digested
from prefopt.types import Needs

Row = TypeVar("Row", bound=Selectable)

PAIR = Needs(completions=2, ordered=True)
BEST = Needs(completions=1, ordered=True)


def pairs(rows: Sequence[Row]) -> list[Row]:
    """The best and the worst completion of each row; none where no row tells them apart: such data have no pairs to measure.

    Raises:
        PrefoptError: `check_held_out`.
    """
    check_held_out(rows)
    return list(select_checked(rows, PAIR, "drop", Counter())) if any(map(_several_ordered, rows)) else []


def best(rows: Sequence[Row]) -> list[Row]:
    """The best completion of each row; none where no row has one.

    Raises:
        PrefoptError: `check_held_out`.
    """
    check_held_out(rows)
    known = any(row.size == 1 or _several_ordered(row) for row in rows)
    return list(select_checked(rows, BEST, "drop", Counter())) if known else []


def gaps(pairs: Sequence[Selectable]) -> Tensor | None:
    """[N] differences of the data's scores; None where a pair has none."""
    scores = [row.scores for row in pairs]
    known = [(s[0], s[1]) for s in scores if s is not None and s[0] is not None and s[1] is not None]
    return torch.tensor([abs(a - b) for a, b in known], dtype=torch.float64) if len(known) == len(pairs) else None


def check_held_out(rows: Sequence[Selectable]) -> None:
    """Refuse rows of which some have one completion or say which is better, and another has several that nothing orders.

    Without any such row there is nothing to measure on recorded completions, and nothing is wrong.

    Raises:
        PrefoptError: names the row.
    """
    unordered = [row for row in rows if row.size > 1 and not _several_ordered(row)]
    if unordered and any(row.size == 1 or _several_ordered(row) for row in rows):
        raise PrefoptError(
            f"evaluate: {unordered[0].where} has {unordered[0].size} completions and nothing that orders them, and so have "
            f"{len(unordered)} of {len(rows)} held-out rows, while others can be measured: give these scores, a ranking or "
            "`chosen` and `rejected`, or leave them out of the held-out data"
        )


def _several_ordered(row: Selectable) -> bool:
    return row.size > 1 and (row.scores is not None or row.preference is not None)


def distinct_prompts(rows: Sequence[Tokenised]) -> Iterator[Tokenised]:
    """The first row of each prompt, or of each `task` of a prompt, in the order of their last ones."""
    prompts = digested((repr((row.prompt_ids, row.example.task)) for row in rows), len(rows))
    _, first = np.unique(prompts, return_index=True)
    _, last = np.unique(prompts[::-1], return_index=True)  # from the end
    for number in first[last.argsort()[::-1]]:
        yield rows[number]
