"""The rows of benchmarks: a prompt, answers of which the first so many are right, and the subset that it belongs to."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from prefopt.data import Example, parse
from prefopt.data.text_episodes import as_seen
from prefopt.data.texts import texts
from prefopt.data.values import read_json
from prefopt.support.errors import PrefoptError
from prefopt.types import Prompt

TOLD = ("chosen", "rejected", "completions", "label", "score", "preference", "votes", "ranks", "num_", "models")
"""Beginnings of columns that may tell which answer is right, or who wrote it; whoever is measured never sees them."""


@dataclass(frozen=True)
class Case:
    """One row of a benchmark.

    Attributes:
        prompt: text or a conversation.
        answers: K texts, the right ones first.
        right: how many of them are.
        subset: of the benchmark.
        group: rows of one prompt have one name, and are resampled together.
        key: the row's own id, or where it stands.
        columns: others of the row, which feedback may read.
    """

    prompt: Prompt
    answers: tuple[str, ...]
    right: int
    subset: str
    group: str
    key: str
    columns: Mapping[str, Any]


def pair(row: Mapping[str, Any], where: str, subset: str) -> Case:
    """A row with one right and one wrong answer: `chosen` and `rejected`, texts or turns.

    Raises:
        PrefoptError: they cannot be read.
    """
    return _case(
        row, where, subset, parse({k: v for k, v in row.items() if k in ("prompt", "chosen", "rejected")}, where), 1
    )


def several(row: Mapping[str, Any], where: str, subset: str) -> Case:
    """A row whose `chosen` and `rejected` are lists of texts.

    Raises:
        PrefoptError: one is no list of texts, or is empty.
    """
    chosen, rejected = (_listed(row, name, where) for name in ("chosen", "rejected"))
    example = parse({"prompt": row.get("prompt") or "", "completions": [*chosen, *rejected]}, where)
    return _case(row, where, subset, example, len(chosen))


def is_listed(row: Mapping[str, Any]) -> bool:
    """Whether `chosen` and `rejected` are lists of texts, or CSV cells that hold such lists."""
    return all(_texts(row.get(name)) is not None for name in ("chosen", "rejected"))


def _listed(row: Mapping[str, Any], name: str, where: str) -> list[str]:
    found = _texts(row.get(name))
    if not found:
        raise PrefoptError(f"{where}: `{name}` must be a list of answers, each a text; got {row.get(name)!r:.80}")
    return found


def _texts(value: Any) -> list[str] | None:
    """A list of texts; also one that stands in the cell of a CSV file. None where it is something else."""
    if isinstance(value, str) and value.lstrip().startswith('["'):
        try:
            value = read_json(value, "")
        except PrefoptError:
            return None
    if isinstance(value, str | Mapping) or not isinstance(value, Sequence):
        return None
    return list(value) if all(isinstance(one, str) for one in value) else None


def _case(row: Mapping[str, Any], where: str, subset: str, example: Example, right: int) -> Case:
    key, example = str(row.get("id", where)), as_seen(example)
    columns = {name: value for name, value in row.items() if name != "prompt" and not name.startswith(TOLD)}
    return Case(example.prompt, tuple(texts(example)), right, subset, example.group, key, columns)
