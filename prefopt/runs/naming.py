"""What a recipe names and that is not there: told at once, since nothing here imports torch or loads a model."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from prefopt import recipe
from prefopt.objectives.names import check_terms
from prefopt.recipe.flat import flat
from prefopt.support.downloads import HUB_ID, no_model
from prefopt.support.errors import PrefoptError
from prefopt.support.files import files_like
from prefopt.support.given import Given
from prefopt.support.plugins import file_of, unknown_name


def refuse_unknown_names(settings: recipe.Recipe) -> None:
    """Refuse what a look at names alone can tell; planning finds the rest.

    Raises:
        PrefoptError: an objective or hyperparameter, a feedback, transform or sampler that there is not; a file of data or of a
            user's code that is not on disk; a model that is neither on disk nor a hub id.
    """
    check_terms(settings.objective)
    tree = settings.to_tree()
    for key, value in _sections(tree):
        _check_section(key, value)
    for key, value in flat(tree).items():
        if isinstance(value, str) and not isinstance(value, Given) and ".py:" in value:
            _located(key, value)


def _sections(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Every section below a tree, with its dotted key; items of lists by their number."""
    for key, value in tree.items():
        items = enumerate(value) if isinstance(value, list) else ()
        for where, one in [(f"{prefix}{key}", value), *((f"{prefix}{key}.{i}", item) for i, item in items)]:
            if isinstance(one, Mapping):
                yield where, one
                yield from _sections(one, f"{where}.")


def _check_section(key: str, section: Mapping[str, Any]) -> None:
    kind = key.rpartition(".")[2] if not key.rpartition(".")[2].isdigit() else key.split(".")[-2]
    known = {
        **dict.fromkeys(("feedback", "cost", "gold", "judge", "members"), ("feedback", recipe.FEEDBACKS)),
        "transforms": ("transform", recipe.TRANSFORMS),
    }.get(kind)
    if known is not None:
        _check_known(section.get("name"), *known, key)
    if "sampler" in section:
        _check_known(section["sampler"], "sampler", recipe.SAMPLERS, f"{key}.sampler")
    if kind in ("policy", "reference", "critic") and section.get("model"):
        _check_model(section["model"])
    if "hub_split" in section:
        for name in section["data"]:
            if isinstance(name, str) and not isinstance(name, Given) and Path(name).suffix in recipe.DATA_FILES:
                files_like(name)


def _check_known(name: Any, what: str, known: tuple[str, ...], where: str) -> None:
    if isinstance(name, str) and not isinstance(name, Given) and ":" not in name and name not in known:
        raise unknown_name(name, what, known, where)


def _check_model(names: list[Any]) -> None:
    if not any(
        isinstance(name, Given) or HUB_ID.fullmatch(name.partition("@")[0]) or Path(name).expanduser().exists()
        for name in names
    ):
        raise no_model(names)


def _located(key: str, value: str) -> None:
    place, _, name = value.rpartition(":")
    if place.endswith(".py") and name.isidentifier():
        try:
            file_of(place)
        except PrefoptError as error:
            raise PrefoptError(f"{key}: {error}") from None
