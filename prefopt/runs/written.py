"""What prefopt itself wrote, read again: a file that is damaged, or somebody else's, is named with what can be done."""

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml

from prefopt.support.errors import PrefoptError

T = TypeVar("T")

PARTS = ("model", "configurations", "data", "versions", "git", "device", "plugins", "seeds")
"""Parts of a manifest that have keys."""

ENDING = ("steps", "stopped", "evaluated_on", "costs", "writes")
"""What a record of training says."""


def read(file: Path, parse: Callable[[str], T], remedy: str) -> T:
    """What `parse` makes of a file.

    Args:
        file: which is there.
        parse: of its text; whatever it raises means that the file is damaged.
        remedy: what can be done then, as the end of a sentence.

    Raises:
        PrefoptError: it is damaged.
    """
    try:
        return parse(file.read_text(encoding="utf-8"))
    except (
        OSError,
        ValueError,
        LookupError,
        TypeError,
        AttributeError,
        ArithmeticError,
        RecursionError,
        yaml.YAMLError,
    ) as error:
        first = next(iter(str(error).splitlines()), type(error).__name__)
        raise PrefoptError(f"{file} is damaged ({first}): {remedy}") from error


def read_json(file: Path, remedy: str, check: Callable[[Mapping[str, Any]], None] | None = None) -> dict[str, Any]:
    """Keys and values of a file in JSON; none where it is not there.

    Args:
        file: JSON.
        remedy: what can be done where it is damaged, as the end of a sentence.
        check: raises a `ValueError` for what cannot stand there.

    Raises:
        PrefoptError: it is damaged.
    """
    return read(file, keys_and_values(json.loads, check), remedy) if file.is_file() else {}


def keys_and_values(
    parse: Callable[[str], Any], check: Callable[[Mapping[str, Any]], None] | None = None
) -> Callable[[str], dict[str, Any]]:
    """The same, of a text that must hold a mapping."""

    def mapping(text: str) -> dict[str, Any]:
        content = parse(text)
        if not isinstance(content, dict):
            raise ValueError("it must hold keys and values")
        if check is not None:
            check(content)
        return content

    return mapping


def check_manifest(content: Mapping[str, Any]) -> None:
    """Refuses a manifest in which a part without keys stands for one with keys."""
    _refuse_plain(content, PARTS)


def check_summary(content: Mapping[str, Any]) -> None:
    """Refuses a summary whose numbers are none."""
    _refuse_plain(content, ("before", "after", "change", "costs"))
    for part in ("before", "after", "costs"):
        for name, entry in content.get(part, {}).items():
            if not is_number(entry["value"] if isinstance(entry, dict) else entry):
                raise ValueError(f"`{part}.{name}` must be a number")


def check_training(content: Mapping[str, Any]) -> None:
    """Refuses a record of training that does not say how it ended."""
    if missing := [name for name in ENDING if name not in content]:
        raise ValueError(f"`{missing[0]}` is missing")
    _refuse_plain(content, ("evaluated_on", "costs"))
    if not isinstance(content["steps"], int) or not 0 <= content["steps"] <= sys.maxsize:
        raise ValueError("`steps` must be a number of steps")


def check_measured(content: Mapping[str, Any]) -> None:
    """Refuses what was measured later without saying how, or whose numbers are none."""
    if not isinstance(content.get("made"), dict):
        raise ValueError("`made` is missing, which says how it was measured")
    _refuse_plain(content, ("numbers", "observations"))
    for name, value in metrics_of(content).items():
        if not is_number(value):
            raise ValueError(f"{name} must be a number")


def metrics_of(content: Mapping[str, Any]) -> dict[str, float | None]:
    """The metrics of something that was measured later; of observations it is Σ values / Σ weights; null is not finite."""
    means = {name: _mean(one["values"], one["weights"]) for name, one in content.get("observations", {}).items()}
    of_corpus = {name: one["value"] for name, one in content.get("corpus", {}).items()}
    return content.get("numbers", {}) | means | of_corpus


def _mean(values: Sequence[float], weights: Sequence[float]) -> float | None:
    return sum(values) / total if (total := sum(weights)) else None


def is_line(content: Any) -> bool:
    """Whether this is a line of metrics: a step, and numbers."""
    return isinstance(content, dict) and content.get("step") is not None and all(map(is_number, content.values()))


def is_number(value: Any) -> bool:
    """Whether this is a number that a float can hold, or null, which is one that is not finite."""
    return value is None or isinstance(value, float) or (isinstance(value, int) and abs(value) <= sys.float_info.max)


def _refuse_plain(content: Mapping[str, Any], names: tuple[str, ...]) -> None:
    for name in names:
        if not isinstance(content.get(name, {}), dict):
            raise ValueError(f"`{name}` must hold keys and values")
