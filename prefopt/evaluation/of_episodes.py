"""What is measured of samples that were written in an environment."""

import math
from collections.abc import Collection, Sequence

import torch
from torch import Tensor

from prefopt.environments.contained import COUNTS
from prefopt.types import Written


def of_episodes(written: Sequence[Sequence[Written]], taken: Collection[str]) -> dict[str, Tensor]:
    """[B, K] by the metric: `return`, the sum of rewards; `turns` of the policy; and what the environment logs, summed over turns.

    An episode whose environment failed has no return, NaN; the share of these is `return_missing`.

    Args:
        written: K samples of each of B prompts.
        taken: names that what an environment logs cannot have; it is then called `environment_NAME`.

    Returns:
        {} where no sample was written in an environment.
    """
    if not any(one.prompt is not None for row in written for one in row):
        return {}
    names = dict.fromkeys(name for row in written for one in row for name in one.info if name not in COUNTS)
    measured = {
        "return": [[math.nan if one.stop == "error" else math.fsum(one.rewards) for one in row] for row in written]
    }
    measured["turns"] = [[float(len(one.turns)) for one in row] for row in written]
    for name in names:
        own = f"environment_{name}" if name in taken else name
        measured[own] = [[one.info.get(name, 0.0) for one in row] for row in written]
    return {name: torch.tensor(values, dtype=torch.float64) for name, values in measured.items()}
