"""The tables of bad inputs: what is done to a good world, what is asked of it, and what the answer must say."""

import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

TABLES = Path(__file__).parent / "tables"
SURFACES = sorted(file.stem for file in TABLES.glob("*.yaml"))


@dataclass(frozen=True)
class Case:
    """One bad input.

    Attributes:
        surface: the table that it stands in.
        property: what holds of the answer, in words; no two cases share one.
        command: the words after `prefopt`.
        files: what stands in the world in place of, or beside, what is good; `world.write` says in which forms.
        environment: variables of the environment.
        replies: what a judge's server says to every request; `world.reply` says in which forms.
        names: regular expressions of what is wrong, and where.
        advises: regular expressions of what to do, or of what would be right.
        status: how `prefopt` ends; 2 is refused.
        leaves: a regular expression of what may be new in the world afterwards.
        changes: and of what may have changed.
        lines: that the sentence may take.
        remedy: the same, after the advice was followed; it must end with status 0.
    """

    surface: str
    property: str
    command: tuple[str, ...]
    files: Mapping[str, Any] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)
    replies: Any = None
    names: tuple[str, ...] = ()
    advises: tuple[str, ...] = ()
    status: int = 2
    leaves: str = ""
    changes: str = ""
    lines: int = 3
    remedy: "Case | None" = None

    @property
    def id(self) -> str:
        """For pytest."""
        return f"{self.surface}: {self.property}"


def cases(surface: str) -> Iterator[Case]:
    """A table's cases. `with` are words after the table's command, `run` a command in its place."""
    table = read(surface)
    for given in table["cases"]:
        case = dict(given)
        remedy = case.pop("remedy", None)
        bad = _case(surface, table, case)
        yield bad if remedy is None else Case(**vars(bad) | {"remedy": _remedied(bad, table, case, remedy)})


def read(surface: str) -> dict[str, Any]:
    """A table: `run`, the command; `files`, of every case; `checked`, more words for a remedy; `good`, commands that are accepted;
    `cases`.
    """
    content: dict[str, Any] = yaml.safe_load((TABLES / f"{surface}.yaml").read_text(encoding="utf-8"))
    return content


def _case(surface: str, table: Mapping[str, Any], given: Mapping[str, Any]) -> Case:
    fields = {name: value for name, value in given.items() if name not in ("run", "with")}
    for name in ("names", "advises"):
        fields[name] = tuple([fields[name]] if isinstance(fields.get(name), str) else fields.get(name, ()))
    fields["files"] = {**table.get("files", {}), **fields.get("files", {})}
    return Case(surface, command=_command(table, given), **fields)


def _command(table: Mapping[str, Any], given: Mapping[str, Any]) -> tuple[str, ...]:
    return (*shlex.split(given.get("run", table["run"])), *shlex.split(given.get("with", "")))


def _remedied(bad: Case, table: Mapping[str, Any], given: Mapping[str, Any], remedy: str | Mapping[str, Any]) -> Case:
    """Words take the place of `with`; a mapping replaces whole keys, and of `files` and `environment` those it names."""
    changed = {"with": remedy} if isinstance(remedy, str) else dict(remedy)
    return Case(
        bad.surface,
        f"{bad.property}, and the remedy",
        (*_command(table, {**given, **changed}), *shlex.split(changed.get("checked", table.get("checked", "")))),
        {**bad.files, **changed.get("files", {})},
        {**bad.environment, **changed.get("environment", {})},
        changed.get("replies"),
        status=0,
        leaves=r".*",
        changes=r".*",
    )
