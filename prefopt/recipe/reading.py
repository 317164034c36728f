"""Reading a recipe: its file, what it inherits, overrides and variables."""

import copy
import glob
import logging
import os
import re
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from prefopt.recipe.explaining import explain
from prefopt.recipe.names import named_section
from prefopt.recipe.parsing import DEEPEST, parsed, refuse_nan, refuse_shape
from prefopt.recipe.renamed import with_new_name, with_new_names
from prefopt.recipe.schema import Recipe
from prefopt.recipe.secrets import refuse_secrets, refuse_variable
from prefopt.recipe.section import Section
from prefopt.recipe.shipped import found, shipped
from prefopt.support.errors import PrefoptError, nearest
from prefopt.support.given import Given

log = logging.getLogger(__name__)

BUILT_IN = {
    name: str(Path(__file__).parent.parent / "testbeds" / name / "lm") for name in ("pocket", "games", "lookups")
}
"""Variables that every recipe has: the folders of the models that come with the package."""


FILES = {".py", ".jsonl", ".json", ".parquet", ".csv", ".txt", ".yaml", ".yml"}
"""Endings by which a string in a recipe is known to be a file. Such a string, or one that begins with ./ or ../, is looked for
beside the recipe first."""


WHOLE = {
    "objective",
    "feedback",
    "cost",
    "judge",
    "evaluate.gold",
    "evaluate.judge",
    "train.schedule",
    "train.optimizer",
}
"""Keys that a recipe takes from its base or replaces whole: the fields of one class mean nothing to another."""


Kind = typing.TypeVar("Kind", bound=Section)

NONE: Mapping[str, Any] = types.MappingProxyType({})


def sections_of(path: str | Path) -> set[str]:
    """The keys at the top of a recipe of any kind, inherited ones included: they tell which kind it is.

    Raises:
        PrefoptError: no such file, or no recipe.
    """
    return set(_read(found(path), seen=()))


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read the recipe of a run; `load` says how.

    Raises:
        PrefoptError: what `load` refuses.
    """
    return load(Recipe, path, overrides)


def load(kind: type[Kind], path: str | Path, overrides: Sequence[str] = ()) -> Kind:
    """Read a recipe of any kind, what it inherits, and the overrides.

    Args:
        kind: what it is a recipe of: `Recipe` is a run; it has a field `name`.
        path: a YAML file, or the name of a recipe that ships (`pocket/dpo`). Its `base:` names another, relative to it, whose
            keys it refines; `objective` and feedbacks are replaced whole.
        overrides: `dotted.key=value`, the value in YAML; items of a list go by their number, as in `objective.0.beta=0.3`.

    Raises:
        PrefoptError: no such file, no YAML, an unknown key (with the nearest known one), a value that cannot be.
    """
    return checked(kind, interpolated(read(path, overrides)), str(path), overrides)


def recipe_from(
    source: Recipe | str | Path | Mapping[str, Any],
    overrides: Sequence[str] = (),
    objects: Mapping[str, Any] = NONE,
    where: str = "the recipe",
) -> Recipe:
    """A recipe from Python: as it is, from a file or from its keys, with overrides and objects on top.

    Args:
        source: a recipe, the file of one, or its keys and values, in which objects may stand for names.
        overrides: as `load` takes them.
        objects: dotted keys of the recipe, and what to put there; None leaves what is there.
        where: what messages call a recipe that is no file.

    Raises:
        PrefoptError: what `load` refuses.
    """
    if isinstance(source, str | Path):
        tree, where = read(source), str(source)
    else:
        refuse_shape({} if isinstance(source, Recipe) else source, where)
        tree = source.to_tree() if isinstance(source, Recipe) else _named(with_new_names(dict(source), where))
    for key, value in objects.items():
        if value is not None:
            _check_object(key, value)
            _put(tree, key, value, f"{key}=")
    for override in overrides:
        if not isinstance(override, str):
            raise PrefoptError(
                f"{override!r} is no override; write a text such as 'train.lr=1e-6', and a run folder as folder="
            )
        _set(tree, override)
    return checked(Recipe, interpolated(_named(tree)), where)


TAKES = {
    "source.data": "names of data, a list of dicts, a pandas.DataFrame, a datasets.Dataset, or a function that yields rows",
    "objective": "a name, a class or object with `needs`, `targets` and `loss`, or a list of these",
    "feedback": "a name, a function of (prompts, completions, rows), or a class or object with __call__",
    "source.rollouts.environment": "a name, or a class or object with `reset` and `step`",
    "evaluate.metrics": "a mapping of names to functions: {name: function}",
    "train.callbacks": "a function of a Step, or a list of these",
}
"""What may stand in the place of a name, by the keys that `run` has arguments for."""


def _check_object(key: str, value: Any) -> None:
    """Refuse what can be none of the things that a key takes."""
    takes = TAKES.get(key)
    wrong = isinstance(value, int | float) or (key == "evaluate.metrics" and not isinstance(value, Mapping))
    if takes and wrong:
        raise PrefoptError(f"{key.rpartition('.')[2]}= ({key}) takes {takes}; got {value!r}")


def read(path: str | Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """What `load` checks: a file, what it inherits and the overrides, as one tree whose ${variables} are still there.

    Raises:
        PrefoptError: no such file, no YAML, an override that is none.
    """
    file = found(path)
    tree = _read(file, seen=())
    parent = file.resolve().parent.name
    tree.setdefault("name", f"{parent}-{file.stem}" if parent else file.stem)
    for override in overrides:
        _set(tree, override)
    return tree


def refined(tree: Mapping[str, Any], fields: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The tree with more on top, in order: dotted keys as overrides put them, all others as a recipe refines its base.

    An objective or feedback without a name changes the fields of the one that is there.

    Raises:
        PrefoptError: a dotted key leads through something that has no keys; begins with `where`.
    """
    merged = copy.deepcopy(dict(tree))
    for key, value in with_new_names(copy.deepcopy(dict(fields)), where).items():
        key = with_new_name(key, where)
        if key in WHOLE and isinstance(value, Mapping) and "name" not in value:
            for name, one in value.items():
                _put(merged, f"{key}.{name}", one, f"{where}: `{key}.{name}`")
        elif "." in key:
            _put(merged, key, value, f"{where}: `{key}`")
        else:
            merged = _merge(merged, _named({key: value}))
    return merged


def checked(kind: type[Kind], tree: Mapping[str, Any], where: str, overrides: Sequence[str] = ()) -> Kind:
    """The tree as a recipe of that kind.

    Args:
        kind: what it is a recipe of.
        tree: keys and values.
        where: they are from, for messages.
        overrides: that are among them; a message on what one of them says names it.

    Raises:
        PrefoptError: an unknown key (with the nearest known one), a value that cannot be, NaN, a secret.
    """
    refuse_secrets(tree, where)
    refuse_nan(tree, where)
    try:
        return kind.model_validate(tree)
    except ValidationError as error:
        raise PrefoptError(explain(error, where, kind, overrides)) from None


def differences(one: Any, other: Any, key: str = "") -> dict[str, tuple[Any, Any]]:
    """The dotted keys in which two recipes, as `model_dump` gives them, differ, with both values.

    A section that one of them lacks is one difference; so is a list.
    """
    if not (isinstance(one, Mapping) and isinstance(other, Mapping)):
        return {} if one == other else {key: (one, other)}
    return {
        dotted: values
        for k in dict.fromkeys([*one, *other])
        for dotted, values in differences(one.get(k), other.get(k), f"{key}.{k}".lstrip(".")).items()
    }


def _read(file: Path, seen: tuple[Path, ...]) -> dict[str, Any]:
    """A file and what it inherits, as one tree."""
    base_of = f" (the base of {seen[-1]})" if seen else ""
    if file.is_dir():
        raise PrefoptError(f"{file}{base_of} is a folder: name the recipe, a YAML file")
    if not file.is_file():
        beside = [f.name for f in file.parent.glob("*.y*ml")] if file.parent.is_dir() else []
        suggestion = nearest(file.name, beside) or nearest(str(file.with_suffix("")), (name for name, _ in shipped()))
        raise PrefoptError(
            f"no recipe {file}{base_of}.{suggestion or ' `prefopt recipes` lists those that come with prefopt'}"
        )
    if file.resolve() in seen:
        raise PrefoptError(f"{file} inherits from itself: {' → '.join(str(f) for f in (*seen, file.resolve()))}")
    try:
        tree = parsed(file.read_text(encoding="utf-8"), str(file))
    except UnicodeDecodeError:
        raise PrefoptError(f"{file} is not a text file in UTF-8") from None
    if not isinstance(tree, dict):
        content = "nothing" if tree is None else f"a {type(tree).__name__}"
        raise PrefoptError(f"{file} must hold keys and values, got {content}")
    base = tree.pop("base", None)
    tree = _absolute(_named(with_new_names(tree, str(file))), file.resolve().parent)
    if base is None:
        return tree
    if not isinstance(base, str):
        raise PrefoptError(f"{file}: `base` must name one other recipe, got {base!r}")
    return _merge(_read(file.parent / Path(base).expanduser(), (*seen, file.resolve())), tree)


def _named(tree: dict[str, Any]) -> dict[str, Any]:
    """The tree with `objective: DPO` written out as `{name: DPO}`, so that overrides can reach into it; feedbacks alike."""
    named = tree | {key: named_section(tree[key]) for key in ("objective", "feedback", "cost", "judge") if key in tree}
    if isinstance(named.get("objective"), list):
        named["objective"] = [named_section(term) for term in named["objective"]]
    if isinstance(measured := named.get("evaluate"), dict):
        named["evaluate"] = measured | {
            key: named_section(measured[key]) for key in ("gold", "judge") if key in measured
        }
    if isinstance(training := named.get("train"), dict):
        named["train"] = training | {
            key: named_section(training[key]) for key in ("schedule", "optimizer") if key in training
        }
    return named


def _absolute(value: Any, folder: Path) -> Any:
    """File names that are found beside the recipe, made absolute, so that the resolved recipe works from anywhere."""
    if isinstance(value, Mapping):
        return {key: _absolute(item, folder) for key, item in value.items()}
    if isinstance(value, list):
        return [_absolute(item, folder) for item in value]
    if isinstance(value, str) and not isinstance(value, Given):
        name, colon, rest = value.partition(":")
        relative = name.startswith(("./", "../"))
        if (relative or Path(name).suffix in FILES) and (
            glob.glob(name, root_dir=folder, recursive=True) or (relative and (folder / name).exists())
        ):
            return f"{os.path.normpath(folder / name)}{colon}{rest}"
    return value


def _merge(base: Mapping[str, Any], child: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    merged = dict(base)
    for key, value in child.items():
        both = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        where = prefix + key if isinstance(key, str) else prefix
        merged[key] = _merge(merged[key], value, f"{where}.") if both and where not in WHOLE else value
    return merged


def _set(tree: dict[str, Any], override: str) -> None:
    """Put an override's value where its dotted key says."""
    key, equals, text = override.partition("=")
    if not equals or not all(key.strip().split(".")):
        raise PrefoptError(f"{override!r} is no override; write key=value, for example train.lr=1e-6")
    if key.count(".") > DEEPEST:
        raise PrefoptError(f"{override[:60]!r}… is nested more than {DEEPEST} levels deep, and no recipe is")
    key = with_new_name(key.strip(), repr(override))
    value = with_new_names(parsed(text, repr(override)), repr(override), key)
    _tell_of_replaced(tree, key, value, override)
    _put(tree, key, _absolute(value, Path.cwd()), repr(override))


def _tell_of_replaced(tree: Any, key: str, value: Any, override: str) -> None:
    """Warn of keys that an override takes away with their section, unless it names another class in its place."""
    for part in key.split("."):
        tree = tree.get(part) if isinstance(tree, Mapping) else None
    if key in WHOLE or not (isinstance(tree, Mapping) and isinstance(value, Mapping)):
        return
    gone = [str(name) for name in tree if name not in value]
    if gone and value.get("name", tree.get("name")) == tree.get("name"):
        log.warning(
            "%s replaces all of `%s`, and with it the recipe's %s; to keep them, give single keys: %s.%s=…",
            override if len(override) <= 60 else f"{override[:60]}…",
            key,
            ", ".join(gone),
            key,
            next(iter(value), gone[0]),
        )


def _put(tree: dict[str, Any], key: str, value: Any, source: str) -> None:
    """Put a value where a dotted key says; messages begin with `source`, which says where the value comes from."""
    *path, last = key.split(".")
    if path and path[0] == "objective" and isinstance(tree.get("objective"), str):
        tree["objective"] = {"name": tree["objective"]}  # the short form, of an objective with its defaults
    if path and path[0] == "objective" and (*path[1:], last)[0].isdigit() and isinstance(tree.get("objective"), dict):
        tree["objective"] = [tree["objective"]]  # objective.0.beta=… also where there is only one
    node: Any = tree
    for depth, part in enumerate(path):
        where = ".".join(path[: depth + 1])
        if isinstance(node, dict):
            node[part] = {} if node.get(part) is None else node[part]
        node = node[_place(node, part, source, ".".join(path[:depth]))]
        if not isinstance(node, dict | list):
            raise PrefoptError(f"{source}: `{where}` is {node!r}, which has no keys")
    node[_place(node, last, source, ".".join(path))] = value


def _place(node: Any, part: str, source: str, where: str) -> Any:
    """The key or the number of an item that `part` stands for in `node`."""
    if isinstance(node, dict):
        return part
    if not part.isdigit():
        raise PrefoptError(f"{source}: `{where}` is a list; say which item, as in {where}.0.{part}")
    if int(part) >= len(node):
        raise PrefoptError(f"{source}: `{where}` has {len(node)} items, numbered from 0")
    return int(part)


def interpolated(tree: Mapping[str, Any], more: Mapping[str, str] = types.MappingProxyType({})) -> dict[str, Any]:
    """The tree with every ${name} replaced, by its own variables and by `more`.

    Raises:
        PrefoptError: a variable that there is not, that is made of itself, or that would put a secret into the recipe.
    """
    given = tree.get("variables")
    variables = BUILT_IN | ({k: str(v) for k, v in given.items()} if isinstance(given, Mapping) else {}) | dict(more)

    def value_of(name: str, through: tuple[str, ...]) -> str:
        if name.startswith("env:"):
            if name[4:] not in os.environ:
                raise PrefoptError(f"${{{name}}}: the environment variable {name[4:]} is not set")
            refuse_variable(name[4:], os.environ[name[4:]])
            return os.environ[name[4:]]
        if name not in variables:
            raise PrefoptError(f"unknown variable ${{{name}}}.{nearest(name, variables)} Known: {', '.join(variables)}")
        if name in through:
            raise PrefoptError(f"the variable ${{{name}}} is made of itself: {' → '.join((*through, name))}")
        return os.path.expanduser(replaced(variables[name], (*through, name)))

    def replaced(text: str, through: tuple[str, ...] = ()) -> str:
        return re.sub(r"\$\{([^}]*)\}", lambda match: value_of(match[1], through), text)

    def walk(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {key: walk(item) for key, item in value.items()}
        if isinstance(value, list):
            return [walk(item) for item in value]
        return replaced(value) if isinstance(value, str) and not isinstance(value, Given) else value

    return walk({k: v for k, v in tree.items() if k != "variables"}) | {"variables": tree.get("variables") or {}}
