"""Batches of rollouts that were drawn before it is their turn, as a checkpoint keeps them."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from prefopt.types import Batch


@dataclass(frozen=True)
class DrawnBatch:
    """A batch with what is told of it once it is trained on.

    Attributes:
        batch: as it was drawn.
        metrics: of its drawing.
        told: its completions, for a person to read: the first so many, None for all. Asked for at some steps only.
    """

    batch: Batch
    metrics: Mapping[str, float]
    told: Callable[[int | None], Sequence[Mapping[str, Any]]]

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain values."""
        batch = {field.name: getattr(self.batch, field.name) for field in fields(Batch)}
        batch |= {name: dict(batch[name]) for name in ("columns", "axes", "named_scores")}
        return {"batch": batch, "metrics": dict(self.metrics), "records": json.dumps(list(self.told(None)))}

    @classmethod
    def of_state(cls, state: Mapping[str, Any]) -> "DrawnBatch":
        """The same from its state."""
        records = json.loads(state["records"])
        return cls(Batch(**state["batch"]), state["metrics"], lambda most: records[:most])


def age(batch: Batch, version: int) -> float:
    """Mean over the completions that a version of the policy wrote of how many updates it had since; NaN where there is none.

    Args:
        batch: of rollouts.
        version: how many updates the policy has had.
    """
    if batch.version is None:
        return float("nan")
    own = (batch.version >= 0) & batch.present
    return (version - batch.version[own]).double().mean().item()
