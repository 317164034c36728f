"""Completions beside the data's own, for objectives that compare with them; a recipe lists them in `source.players`."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import torch
from torch.nn.functional import pad

from prefopt.errors import PrefoptError
from prefopt.types import COMPLETION_COLUMNS, ORIGINS, Batch, Needs

SUPPLIED = frozenset({"origin", "trained"})
"""Columns that players write."""


def mismatched(batch: Batch) -> Batch:
    """After each prompt's completions, the first one of another prompt: the next row's that has another prompt.

    Never trained. Absent where all rows have one prompt. What a batch pairs depends on its rows and their order alone.
    """
    rows = len(batch)
    donors = [
        next((j % rows for j in range(i + 1, i + rows) if batch.prompt_ids[j % rows] != batch.prompt_ids[i]), None)
        for i in range(rows)
    ]
    index = torch.tensor([0 if j is None else j for j in donors], device=batch.mask.device)
    found = torch.tensor([j is not None for j in donors], device=batch.mask.device)[:, None, None]
    origin = torch.zeros(batch.present.shape, dtype=torch.long, device=batch.mask.device)
    columns = {
        n: pad(c, (0, 0) * (c.ndim - 2) + (0, 1)) if n in COMPLETION_COLUMNS else c for n, c in batch.columns.items()
    }
    return dataclasses.replace(
        batch,
        completion_ids=torch.cat([batch.completion_ids, batch.completion_ids[index, :1] * found], 1),
        mask=torch.cat([batch.mask, batch.mask[index, :1] & found], 1),
        scores=None if batch.scores is None else pad(batch.scores, (0, 1)),
        preference=None if batch.preference is None else pad(batch.preference, (0, 1, 0, 1), value=0.5),
        columns=columns
        | {
            "origin": pad(origin, (0, 1), value=ORIGINS.index("mismatched")),
            "trained": pad(torch.ones_like(origin), (0, 1)).bool(),
        },
    )


PLAYERS: Mapping[str, Callable[[Batch], Batch]] = {"mismatched": mismatched}


def without_players(needs: Needs, players: Sequence[str], name: str) -> Needs:
    """What the data must bring for an objective whose further completions come from players.

    Args:
        needs: the objective's.
        players: the recipe's.
        name: of the objective, for messages.

    Raises:
        PrefoptError: an objective that needs players and has none, or the reverse.
    """
    compares = bool(SUPPLIED & set(needs.columns))
    if compares and not players:
        raise PrefoptError(
            f"{name} compares with completions that are not the data's own; write `source: {{players: [mismatched]}}`"
        )
    if players and not compares:
        raise PrefoptError(
            f"source.players is {list(players)}, and {name} does not compare with completions of others: leave it out"
        )
    return dataclasses.replace(
        needs,
        completions=None if needs.completions is None else needs.completions - len(players),
        columns=tuple(column for column in needs.columns if column not in SUPPLIED),
    )
