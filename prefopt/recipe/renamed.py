"""Keys that had another name in the previous version: still read, with a warning that says the new one."""

import logging
from collections.abc import Mapping
from typing import Any

from prefopt.support.errors import PrefoptError

log = logging.getLogger(__name__)

RENAMED: dict[str, str] = {
    **{f"{section}.shape": "transforms" for section in ("feedback", "cost", "gold", "judge", "members")},
    "source.players": "writers",
    "rollouts.rows": "batch_size",
    "samples.rows": "batch_size",
    **{"chance": "randomness", "hold": "budget"},  # of a study
}
"""`section.old key` → new key, for every section of that name wherever it stands: `source.players` is also that of a term."""


def with_new_names(tree: Any, where: str | None, path: str = "") -> Any:
    """The tree with every renamed key under its new name.

    Args:
        tree: of a recipe of any kind, or a part of one.
        where: the file, for the warning; None gives no warning: nobody needs to edit the recipe of a run folder.
        path: dotted key of `tree` in its recipe.

    Raises:
        PrefoptError: a section has a key under both names.
    """
    if isinstance(tree, list):
        return [with_new_names(item, where, path) for item in tree]
    if not isinstance(tree, Mapping):
        return tree
    renamed: dict[Any, Any] = {}
    for key, value in tree.items():
        new = _new_key(path, key)
        if new in renamed or (new != key and new in tree):
            raise PrefoptError(f"{where}: `{key}` is now called `{new}`, and both are given: leave out `{key}`")
        if new != key:
            _warn(where, f"{path}.{key}", new)
        renamed[new] = with_new_names(value, where, f"{path}.{new}".lstrip("."))
    return renamed


def with_new_name(key: str, where: str) -> str:
    """A dotted key, as an override has it, with every part under its new name."""
    parts: list[str] = []
    for part in key.split("."):
        new = new_name(".".join([*parts, part]))
        if new != part:
            _warn(where, key, new)
        parts.append(new)
    return ".".join(parts)


def new_name(path: str) -> str:
    """The present name of the last part of a dotted key."""
    above, _, key = path.rpartition(".")
    sections = [part for part in above.split(".") if part and not part.isdigit()]
    return RENAMED.get(f"{sections[-1]}.{key}" if sections else key, key)


def _new_key(path: str, key: Any) -> Any:
    """The present name of a key under `path`. The key may be dotted, as studies write overrides, or no text at all."""
    if not isinstance(key, str):
        return key
    parts: list[str] = []
    for part in key.split("."):
        parts.append(new_name(".".join([path, *parts, part])))
    return ".".join(parts)


def _warn(where: str | None, old: str, new: str) -> None:
    if where is None:
        return
    log.warning("%s: `%s` is now called `%s`; the old name is read for one more version", where, old.lstrip("."), new)
