"""Who writes completions beside the policy or the data, for objectives that compare; a recipe lists them in `source.writers`."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import pad

from prefopt import recipe
from prefopt.policy import Following, Policy, Reference
from prefopt.policy.decode.sampler import Mixture
from prefopt.support.errors import PrefoptError
from prefopt.types import ORIGINS, Batch, Needs

SUPPLIED = frozenset({"origin", "trained"})
"""Columns that say who wrote a completion; only batches with writers have them."""


@dataclass(frozen=True)
class Writer:
    """Adds completions to every prompt of a batch of rollouts.

    Attributes:
        origin: one of `ORIGINS`, what the completions are called in a batch.
        model: what is sampled from; None for completions that are there already.
        completions: of each prompt.
        trained: whether the loss has a gradient for them.
        sampling: how they are drawn.
    """

    origin: str
    model: Any = None
    completions: int = 1
    trained: bool = True
    sampling: Any = None


TRAINED = {"reference": True, "dataset": True, "mixture": False, "greedy": False, "mismatched": False}
"""The writers of rollouts beside the policy, and whether what they write is learnt from or only compared with."""


def mismatched(batch: Batch) -> Batch:
    """The batch with one more completion of each prompt: the first of the next row that has another prompt.

    It is not trained on, and absent where all rows have the same prompt. It depends on the rows of the batch and their order alone.
    """
    rows = len(batch)
    donors = [
        next((j % rows for j in range(i + 1, i + rows) if batch.prompt_ids[j % rows] != batch.prompt_ids[i]), None)
        for i in range(rows)
    ]
    index = torch.tensor([0 if j is None else j for j in donors], device=batch.mask.device)
    has_donor = torch.tensor([j is not None for j in donors], device=batch.mask.device)[:, None, None]
    origin = batch.columns.get("origin", torch.zeros_like(batch.present, dtype=torch.long))
    trained = batch.columns.get("trained", torch.ones_like(batch.present))
    more = batch.extended(1)
    return dataclasses.replace(
        more,
        completion_ids=torch.cat([batch.completion_ids, batch.completion_ids[index, :1] * has_donor], 1),
        mask=torch.cat([batch.mask, batch.mask[index, :1] & has_donor], 1),
        version=None if batch.version is None else torch.cat([batch.version, batch.version[index, :1]], 1),
        columns={
            **more.columns,
            "origin": pad(origin, (0, 1), value=ORIGINS.index("mismatched")),
            "trained": pad(trained, (0, 1)),
        },
    )


ADDED: Mapping[str, Callable[[Batch], Batch]] = {"mismatched": mismatched}


def writers(source: recipe.Source, policy: Policy, reference: Reference | Following | None) -> list[Writer]:
    """Who writes a recipe's rollouts: the policy, then those of `source.writers` in their order."""
    spec = source.rollouts
    assert spec is not None
    chosen = [Writer("policy", policy, spec.completions, True, spec.sampling)]
    for origin in source.writers:
        model: Any = None
        sampling = spec.sampling
        if origin == "greedy":
            model, sampling = policy, spec.sampling.model_copy(update={"temperature": 0.0})
        elif origin in ("reference", "mixture"):
            assert reference is not None
            model = reference if origin == "reference" else Mixture(policy, reference, spec.mixture)
        chosen.append(Writer(origin, model, 1, TRAINED[origin], sampling))
    return chosen


def without_writers(needs: Needs, writers: Sequence[str], name: str) -> Needs:
    """What the data must bring for an objective whose further completions come from writers.

    Args:
        needs: the objective's.
        writers: the recipe's.
        name: of the objective, for messages.

    Raises:
        PrefoptError: an objective that needs writers and has none, or the reverse.
    """
    compares = bool(SUPPLIED & set(needs.columns))
    if compares and not writers:
        raise PrefoptError(
            f"{name} compares with completions that are not the data's own; write `source: {{writers: [mismatched]}}`"
        )
    if writers and not compares:
        raise PrefoptError(
            f"source.writers is {list(writers)}, and {name} does not compare with completions of others: leave it out"
        )
    return dataclasses.replace(
        needs,
        completions=None if needs.completions is None else needs.completions - len(writers),
        columns=tuple(column for column in needs.columns if column not in SUPPLIED),
    )
