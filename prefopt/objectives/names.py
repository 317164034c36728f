"""What objectives there are and what fields they have, read from their source: mistakes are told before torch is imported."""

import ast
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path

from prefopt.recipe import Recipe, Term, describe, other_name
from prefopt.support.errors import PrefoptError
from prefopt.support.given import Given
from prefopt.support.plugins import UnknownFieldError, check_names, unknown_name

FOLDER = Path(__file__).parent


@lru_cache
def homes() -> dict[str, str]:
    """The module of every objective that the catalogue imports, by the objective's name."""
    imports = (node for node in _parsed("prefopt.objectives.catalogue").body if isinstance(node, ast.ImportFrom))
    return {
        alias.name: node.module
        for node in imports
        for alias in node.names
        if node.module and node.module.startswith("prefopt.objectives.") and alias.name[0].isupper()
    }


def fields_of(name: str) -> tuple[str, ...]:
    """The hyperparameters of an objective of the catalogue, inherited ones first.

    Raises:
        KeyError: it is not in the catalogue.
    """
    return tuple(dict.fromkeys(_fields(name, _parsed(homes()[name]))))


def check_terms(terms: Sequence[Term]) -> None:
    """Refuse names and fields that no objective of the catalogue has. Users' own are found when they are loaded.

    Raises:
        PrefoptError: an unknown name or field, with the nearest known one.
    """
    for term in terms:
        if isinstance(term.name, Given) or ":" in term.name:
            continue
        if term.name not in homes():
            raise unknown_name(term.name, "objective", list(homes()))
        try:
            check_names(term.fields, fields_of(term.name), term.name)
        except UnknownFieldError as error:
            raise explained(error, term.fields[error.field]) from None


def explained(error: UnknownFieldError, value: object) -> PrefoptError:
    """An unknown field, with where its meaning is set if it is another library's name or a key of the recipe."""
    hint = other_name(error.field, value, [field.key for field in describe(Recipe)])
    return PrefoptError(f"{error}{hint}")


def _parsed(module: str) -> ast.Module:
    file = FOLDER.joinpath(*module.removeprefix("prefopt.objectives.").split(".")).with_suffix(".py")
    return ast.parse(file.read_text(encoding="utf-8"))


def _fields(name: str, module: ast.Module) -> Iterator[str]:
    """Annotated names in the body of a dataclass, after those of its bases in the same file."""
    classes = {node.name: node for node in module.body if isinstance(node, ast.ClassDef)}
    for base in classes[name].bases:
        if isinstance(base, ast.Name) and base.id in classes:
            yield from _fields(base.id, module)
    for node in classes[name].body:
        constant = isinstance(node, ast.AnnAssign) and "ClassVar" in ast.unparse(node.annotation)
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and not constant:
            yield node.target.id
