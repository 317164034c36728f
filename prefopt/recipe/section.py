"""The base class of all sections of a recipe."""

from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """A section of a recipe, or a whole recipe: immutable, its numbers finite, and unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    def to_yaml(self) -> str:
        """The section in YAML with every field, as it can be loaded again."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)

    def to_tree(self) -> dict[str, Any]:
        """It as dicts and lists, as a file would have it, in which Python objects stay what they are."""
        tree: dict[str, Any] = _lists(self.model_dump())
        return tree


def _lists(value: Any) -> Any:
    """With lists for tuples."""
    if isinstance(value, dict):
        return {key: _lists(item) for key, item in value.items()}
    return [_lists(item) for item in value] if isinstance(value, list | tuple) else value
