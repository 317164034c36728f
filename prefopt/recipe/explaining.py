"""Recipes in words: what is wrong with one, and what each field means."""

import re
import types
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import yaml
from pydantic import BaseModel, ValidationError

from prefopt.recipe.names import Callback
from prefopt.recipe.other_names import other_name
from prefopt.recipe.schema import Environment, Feedback, Optimizer, Recipe, Schedule, Source, Term, Transform
from prefopt.support.errors import nearest

PYTHONS = {"tuple_type": "list", "bool_type": "true | false", "bool_parsing": "true | false", "string_type": "text"}
"""Errors in which pydantic names a type of Python's, and what it is in a recipe."""


def explain(error: ValidationError, where: str, kind: type[BaseModel] = Recipe, overrides: Sequence[str] = ()) -> str:
    """A pydantic error, a line for each key that is wrong: where, what, and what to write instead."""
    known = {field.key: field for field in describe(kind)}
    items = error.errors()
    lines = list(dict.fromkeys(_line(item, known) for item in items))
    from_overrides = [_override_of(".".join(_path(item)), overrides) for item in items]
    if all(from_overrides):
        where = ", ".join(dict.fromkeys(map(str, from_overrides)))
    return f"{where}: " + ("\n  ".join(["", *lines]) if len(lines) > 1 else lines[0])


def _override_of(key: str, overrides: Sequence[str]) -> str | None:
    """The last override that a key was set by; None where it was none."""
    names = {override: override.partition("=")[0].strip().replace(".0.", ".") for override in overrides}
    return next((one for one in reversed(overrides) if f"{key}.".startswith(f"{names[one]}.")), None)


def _path(item: Any) -> list[str]:
    """Of a pydantic error, without the branch of a union, and without item 0, because one objective needs no list."""
    return [
        str(part) for part in item["loc"] if part != 0 and not re.search(r"[\[(]|^(str|int|float|bool)$", str(part))
    ]


def _line(item: Any, known: Mapping[str, "Described"]) -> str:
    path = _path(item)
    key = ".".join(path)
    plain = ".".join(part for part in path if not part.isdigit())
    if item["type"] == "extra_forbidden":
        return f"unknown key `{key}`.{other_name(plain, item['input'], known) or _suggestion(plain, known)}"
    if item["type"] == "missing":
        return f"`{key}` is missing: {known[plain].description if plain in known else 'it is required'}"
    if item["type"] == "value_error":
        what = item["msg"].removeprefix("Value error, ")
        return f"`{key}`: {what}" if key else what
    message = (
        item["msg"].replace("Input should", "must").replace("a valid integer", "an integer").partition(", unable to")[0]
    )
    if item["type"] in ("model_type", "dict_type", "model_attributes_type"):
        message = "must hold keys and values"
    elif item["type"] in PYTHONS:
        message = f"must be {known[plain].kind if plain in known else PYTHONS[item['type']]}"
    elif item["type"] == "invalid_key":
        return f"`{key.rpartition('.')[0]}` has the key {item['input']!r}; keys are text"
    given = repr(item["input"])
    return f"`{key}` {message}, got {given if len(given) <= 80 else given[:77] + '…'}"


def _suggestion(key: str, known: Iterable[str]) -> str:
    """The nearest key of the section, or the same word in another section, or else what the section has."""
    parent, _, last = key.rpartition(".")
    siblings = [k for k in known if k.rpartition(".")[0] == parent]
    elsewhere = [k for k in known if k.rpartition(".")[2] == last]
    has = [k.rpartition(".")[2] for k in siblings]
    guess = nearest(last, has) or (nearest(elsewhere[0], elsewhere) if elsewhere else "")
    of_study = "arms" in siblings
    if of_study and not guess and key in Recipe.model_fields:
        return f" Recipes have it: `common.{key}` changes it for all runs of the study"
    whole = "A study" if of_study else "A recipe"
    return guess or f" {f'`{parent}`' if parent else whole} has: {', '.join(has)}"


class Described(NamedTuple):
    """One field of a recipe, for help and docs."""

    key: str
    kind: str
    default: str
    description: str


def describe(section: type[BaseModel], prefix: str = "") -> Iterator[Described]:
    """Every field of a recipe, nested sections after their own line."""
    for name, info in section.model_fields.items():
        default = "required" if info.is_required() else _show(info.get_default(call_default_factory=True))
        yield Described(prefix + name, _kind(info.annotation), default, info.description or "")
        for nested in _sections_in(info.annotation):
            # A term's source is like the run's, and every feedback like the first.
            if not (nested is Source and prefix) and not (nested is Feedback and prefix + name != "feedback"):
                yield from describe(nested, f"{prefix}{name}.")


def _show(default: Any) -> str:
    """A default as it would stand in a recipe; nothing for a section, whose fields have their own."""
    if isinstance(default, Schedule | Optimizer):
        return default.name
    if isinstance(default, BaseModel):
        return ""
    if isinstance(default, tuple):
        return f"[{', '.join(map(_show, default))}]"
    if isinstance(default, float):
        return f"{default:g}".replace("e-0", "e-")
    return yaml.safe_dump(default, default_flow_style=True).removesuffix("...\n").strip()


def _kind(annotation: Any) -> str:
    """A type in words."""
    origin, parts = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return _kind(parts[0])
    if origin is Literal:
        return " | ".join(map(str, parts))
    if origin in (typing.Union, types.UnionType):
        words = list(dict.fromkeys(map(_kind, parts)))
        return " or ".join(word for word in words if not (word == "text" and "text or list" in words))
    if origin is dict:
        return "mapping"
    if origin is tuple:
        if typing.get_origin(parts[0]) is typing.Annotated:
            parts = (typing.get_args(parts[0])[0], *parts[1:])
        lists: dict[Any, str] = {str: "text or list"}
        lists |= dict.fromkeys((Term, Transform, Feedback, Callback), "name, section or list")
        return lists.get(parts[0], "list") if parts[-1] is Ellipsis else f"{len(parts)} {_kind(parts[0])}s"
    if annotation in (Feedback, Environment, Schedule, Optimizer):
        return "name or section"
    if _sections_in(annotation):
        return "section"
    words_for = {int: "integer", float: "number", str: "text", bool: "true | false", type(None): "null"}
    return words_for.get(annotation, "mapping")


def _sections_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [section for part in typing.get_args(annotation) for section in _sections_in(part)]
