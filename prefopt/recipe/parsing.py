"""YAML into trees of plain values, and what no tree of a recipe may be: endlessly nested, multiplied by aliases, not a number."""

import math
import re
from collections.abc import Mapping
from typing import Any

import yaml

from prefopt.support.errors import PrefoptError

DEEPEST = 50
"""Levels of nesting; recipes have fewer than ten, and Python's own limit is near a thousand calls."""

MOST_VALUES = 1_000_000
"""Values of a tree, those behind an alias counted each time that it is used."""


class _Loader(yaml.SafeLoader):
    """YAML, except that 1e-6 is a number, as everyone who types it means, and that a key is there only once."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """A mapping; refuses a key that is given twice, of which YAML would silently take the last."""
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
                if key.value in seen:
                    raise yaml.MarkedYAMLError(problem=f"{key.value!r} is there twice", problem_mark=key.start_mark)
                seen.add(key.value)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
)


def parsed(text: str, where: str) -> Any:
    """What a YAML text says.

    Args:
        text: the YAML.
        where: it is from, with which messages begin.

    Raises:
        PrefoptError: it is not YAML, or a tree that `refuse_shape` refuses.
    """
    try:
        tree = yaml.load(text, _Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        line = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise PrefoptError(f"{where}{line}: not YAML: {error.problem}") from None
    except RecursionError:
        raise PrefoptError(_too_deep(where)) from None
    except (yaml.YAMLError, ValueError) as error:  # a date such as 2024-13-45 is a ValueError
        raise PrefoptError(f"{where} is not YAML: {error}") from None
    refuse_shape(tree, where)
    return tree


def refuse_shape(tree: Any, where: str) -> None:
    """Refuse a tree that holds itself, is nested too deeply, or multiplies to too many values.

    Raises:
        PrefoptError: it is such a tree.
    """
    sizes: dict[int, int] = {}  # of what was walked, so that an alias that is used often costs nothing

    def size(value: Any, above: tuple[int, ...]) -> int:
        if not isinstance(value, dict | list | tuple):
            return 1
        if id(value) in above:
            raise PrefoptError(
                f"{where}: a value holds itself (an alias `*…` inside its own anchor `&…`): write it out"
            )
        if len(above) >= DEEPEST:
            raise PrefoptError(_too_deep(where))
        if id(value) not in sizes:
            items = value.values() if isinstance(value, dict) else value
            sizes[id(value)] = 1 + sum(size(item, (*above, id(value))) for item in items)
        return sizes[id(value)]

    if (values := size(tree, ())) > MOST_VALUES:
        raise PrefoptError(f"{where}: its aliases multiply to {values:,} values, and at most {MOST_VALUES:,} are read")


def refuse_nan(tree: Any, where: str, key: str = "") -> None:
    """Refuse NaN anywhere in a tree: no setting is "not a number", and NaN differs even from itself when a run is resumed.

    Raises:
        PrefoptError: names the key.
    """
    if isinstance(tree, float) and math.isnan(tree):
        raise PrefoptError(
            f"{where}: `{key}` is nan, which is no number to compute with: write a number, or leave it out"
        )
    items = tree.items() if isinstance(tree, Mapping) else enumerate(tree) if isinstance(tree, list | tuple) else ()
    for name, value in items:
        refuse_nan(value, where, f"{key}.{name}".lstrip("."))


def _too_deep(where: str) -> str:
    return f"{where} is nested more than {DEEPEST} levels deep, and no recipe is: close the brackets earlier"
