"""Fields of resolved recipes by their dotted keys, as comparisons and previews show them."""

from collections.abc import Mapping, Sequence
from typing import Any


def flat(tree: Any, key: str = "") -> dict[str, Any]:
    """Dotted key → value; sections in a list are numbered, except the only one of its list: `objective.beta`."""
    if isinstance(tree, list) and tree and all(isinstance(item, Mapping) for item in tree):
        tree = tree[0] if len(tree) == 1 else {str(number): item for number, item in enumerate(tree)}
    if not isinstance(tree, Mapping) or not tree:
        return {key: tree} if key else {}
    return {k: v for name, item in tree.items() for k, v in flat(item, f"{key}.{name}".lstrip(".")).items()}


def within(key: str, sections: Sequence[str]) -> bool:
    """Whether a dotted key is one of these sections or fields, or lies in one of them."""
    return any(key == section or key.startswith(f"{section}.") for section in sections)


def short_value(value: Any) -> str:
    """A value as a short text; a section as its name."""
    if isinstance(value, Mapping):
        return str(value.get("name", "given" if value else "none"))
    if isinstance(value, list) and len(value) == 1:
        return short_value(value[0])
    text = "none" if value is None else f"{value:g}" if isinstance(value, float) else str(value)
    return text if len(text) <= 60 else f"…{text[-59:]}"
