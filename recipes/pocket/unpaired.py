"""The pairs of the pocket world for objectives of single completions."""

from collections.abc import Iterator
from typing import Any

from prefopt.testbeds.pocket import preferences


def labels(n: int, **more: Any) -> Iterator[dict[str, Any]]:
    """Both texts of every pair as rows of their own, `prompt/completion/label`: the same data, less who was compared with whom.

    Args:
        n: number of pairs.
        more: as in `preferences`.
    """
    for row in preferences(n, **more):
        for name, gold in zip(("chosen", "rejected"), row["gold"], strict=True):
            yield {
                "prompt": row["prompt"],
                "completion": row[name],
                "label": name == "chosen",
                "group": row["group"],
                "gold": [gold],
            }
