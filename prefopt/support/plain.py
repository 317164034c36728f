"""Values as JSON holds them."""

import math
from collections.abc import Mapping

Number = float | int


def plain(metrics: Mapping[str, Number]) -> dict[str, Number | None]:
    """JSON has no NaN and no infinity."""
    return {name: value if math.isfinite(value) else None for name, value in metrics.items()}
