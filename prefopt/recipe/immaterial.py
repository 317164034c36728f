"""The keys by which a run or a labelling that goes on may differ from its beginning: the one list of them.

They say how much memory, time or money it may take and where its numbers are sent, and not what is learnt or found. Micro-batches
and threads change sums by rounding alone.
"""

import re
from collections.abc import Mapping
from typing import Any

from prefopt.recipe.reading import differences
from prefopt.recipe.section import Section

OF_FEEDBACK = r"(.*\.)?(budget|timeout|retries|concurrency|batch_size|cache)"
OF_SAMPLES = r"(batch_size|server)"
FEEDBACKS = r"(feedback|cost|evaluate\.gold|evaluate\.judge|evaluate\.metrics)"

OF_RUNS = (
    r"name|variables|track",
    r"train\.(micro_batch_size|micro_tokens|shard|threads|checkpoint_every|keep_checkpoints)",
    r"policy\.gradient_checkpointing|reference\.cache",
    rf"source\.rollouts\.{OF_SAMPLES}|(source|objective\.source)\.embeddings\.batch_size",
    rf"evaluate\.(every|{OF_SAMPLES})",
    rf"{FEEDBACKS}\.{OF_FEEDBACK}",
)
"""Dotted keys of a run's recipe, without the numbers of lists; what is below such a key is immaterial, too."""

OF_LABELLINGS = (
    r"name|variables|batch_size|threads|policy\.gradient_checkpointing",
    rf"samples\.{OF_SAMPLES}",
    rf"feedback\.{OF_FEEDBACK}",
)
"""The same of a labelling's."""


def material(tree: Mapping[str, Any], immaterial: tuple[str, ...]) -> dict[str, Any]:
    """A recipe, as `model_dump` gives it, without its immaterial keys."""
    pattern = re.compile("|".join(f"(?:{keys})" for keys in immaterial))
    kept: dict[str, Any] = _without(tree, pattern, "")
    return kept


def material_differences(begun: Section, now: Section, immaterial: tuple[str, ...]) -> dict[str, tuple[Any, Any]]:
    """The dotted keys for which something that has begun cannot go on by another recipe, with both values."""
    one, other = (material(settings.model_dump(mode="json"), immaterial) for settings in (begun, now))
    return differences(one, other)


def _without(tree: Any, pattern: re.Pattern[str], path: str) -> Any:
    if isinstance(tree, list | tuple):
        return [_without(item, pattern, path) for item in tree]
    if not isinstance(tree, Mapping):
        return tree
    keys = {key: f"{path}.{key}".lstrip(".") for key in tree}
    return {key: _without(tree[key], pattern, dotted) for key, dotted in keys.items() if not pattern.fullmatch(dotted)}
