"""Rubrics of the previous version, text files with sections and {placeholders}, translated into sections of a recipe."""

import json
import re
import string
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from prefopt.feedback.judges.rubric import NAMES
from prefopt.support.errors import PrefoptError, nearest

SECTIONS = ("system", "question", "thought", "rationale", "answer", "labels", "example", "principles")
"""What such a file may hold."""


def translated(text: str, name: str) -> dict[str, Any]:
    """The text as a section `rubric` of a recipe.

    Raises:
        PrefoptError: it is malformed; says which line.
    """
    tree: dict[str, Any] = {}
    for section, (first, lines) in _sections(text, name).items():
        if section == "labels":
            tree[section] = [_label(line, f"{name}:{first + i}") for i, line in enumerate(lines) if line.strip()]
        elif section == "principles":
            tree[section] = [line.strip() for line in lines if line.strip()]
        else:
            tree[section] = "\n".join(
                _in_jinja(line, f"{name}:{first + i}", NAMES[section]) for i, line in enumerate(lines)
            )
    return tree


def in_yaml(tree: Mapping[str, Any]) -> str:
    """The section as a file of its own."""
    return yaml.dump(dict(tree), Dumper=_Blocks, sort_keys=False, allow_unicode=True, width=10_000)


class _Blocks(yaml.SafeDumper):
    """YAML whose longer texts are blocks of lines."""


def _as_block(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    style = "|" if "\n" in text else '"' if text != text.strip() else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Blocks.add_representer(str, _as_block)


def _in_jinja(line: str, where: str, known: Sequence[str]) -> str:
    """A line's placeholders in jinja2's braces, and its words so that jinja2 leaves them alone."""
    literal, parts = "", []
    try:
        for words, name, form, conversion in string.Formatter().parse(line):
            if form or conversion:
                raise ValueError(f"{{{name}}} takes no format")
            literal += words
            if name is not None:
                _check_name(name, where, known)
                parts += [_escaped(literal), f"{{{{ {name} }}}}"]
                literal = ""
    except ValueError as error:
        raise PrefoptError(f"{where}: {error}; a brace that is meant as one is written twice") from None
    return "".join([*parts, _escaped(literal)])


def _check_name(name: str, where: str, known: Sequence[str]) -> None:
    """Refuse a placeholder that is none of these, nor a column of the row."""
    if name not in known and not ("row" in known and re.fullmatch(r"row\.[A-Za-z]\w*", name)):
        raise PrefoptError(
            f"{where}: unknown name {name!r}.{nearest(name, known)} Known there: {', '.join(known) or 'none'}"
        )


def _escaped(literal: str) -> str:
    special = re.search(r"\{[{%#]|\{$", literal)
    return f"{{%+ raw %}}{literal}{{% endraw +%}}" if special else literal


def _sections(text: str, name: str) -> dict[str, tuple[int, list[str]]]:
    """For each section, the number of its first line and its lines, without empty ones at both ends."""
    sections: dict[str, tuple[int, list[str]]] = {}
    current: list[str] | None = None
    for number, line in enumerate(text.splitlines(), 1):
        header = re.fullmatch(r"\[([\w ]+)\]\s*", line)
        if header:
            section = header[1]
            if section not in SECTIONS:
                raise PrefoptError(
                    f"{name}:{number}: unknown section [{section}].{nearest(section, SECTIONS)} Known: {', '.join(SECTIONS)}. "
                    "A line of text that looks like one begins with a backslash."
                )
            if section in sections:
                raise PrefoptError(f"{name}:{number}: [{section}] is there twice")
            current = []
            sections[section] = (number + 1, current)
        elif current is not None:
            current.append(line.removeprefix("\\") if line.startswith("\\[") else line)
        elif line.strip() and not line.startswith("#"):
            raise PrefoptError(f"{name}:{number}: text before the first section; a comment begins with #")
    return {
        section: _trimmed(first, lines, f"{name}:{first - 1}: [{section}]")
        for section, (first, lines) in sections.items()
    }


def _trimmed(first: int, lines: list[str], where: str) -> tuple[int, list[str]]:
    while lines and not lines[-1].strip():
        lines.pop()
    if not lines:
        raise PrefoptError(f"{where} is empty; leave it out or fill it")
    empty = next(i for i, line in enumerate(lines) if line.strip())
    return first + empty, lines[empty:]


def _label(line: str, where: str) -> str:
    """A label: the line, or what its quotation marks hold, spaces included."""
    if not line.startswith('"'):
        return line.strip()
    try:
        label = str(json.loads(line))
    except json.JSONDecodeError as error:
        raise PrefoptError(f"{where}: a label in quotation marks is a JSON string: {error}") from error
    if not label.strip():
        raise PrefoptError(f"{where}: a label of nothing but space; write a word, or leave the line out")
    return label
