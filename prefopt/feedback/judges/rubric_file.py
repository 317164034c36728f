"""Rubrics on disk: a text file with sections, and examples in a JSONL file beside it."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

from prefopt.feedback.judges.rubric import TEXTS, Rubric
from prefopt.feedback.judges.template import Template, is_template, parsed
from prefopt.support.errors import PrefoptError, nearest

SECTIONS = ("system", "question", "thought", "rationale", "answer", "labels", "example", "principles")
"""What a rubric may hold; docs/judges.md says what each is for."""

PLACEHOLDERS = {
    "system": (*TEXTS, "examples", "principle"),
    "question": (*TEXTS, "examples", "principle"),
    "thought": ("principle",),
    "rationale": ("rationale",),
    "answer": (),
    "example": (*TEXTS, "principle", "verdict", "rationale"),
}


def load_rubric(name: str) -> Rubric:
    """The rubric in a file, with the examples beside it.

    Args:
        name: a file; the name of one that comes with prefopt (`pairwise`, `expected`, …); or `package:file`, in a package.

    Raises:
        PrefoptError: there is none, or it is malformed; says which line.
    """
    file = Path(name).expanduser()
    if file.is_file():
        return _read(file)
    package, _, resource = name.rpartition(":")
    place = files(package or "prefopt.feedback.judges.rubrics") if _is_package(package) else None
    if place is None or not (found := place / (resource if package else f"{name}.txt")).is_file():
        known = sorted(
            path.name.removesuffix(".txt")
            for path in files("prefopt.feedback.judges.rubrics").iterdir()
            if path.name.endswith(".txt")
        )
        raise PrefoptError(
            f"no rubric {name}: it is no file, and none of prefopt's own ({', '.join(known)}).{nearest(name, known)}"
        )
    with as_file(found) as path:
        return _read(path)


def parse_rubric(text: str, name: str, examples: Sequence[Mapping[str, Any]] = ()) -> Rubric:
    """The rubric that a text is.

    Raises:
        PrefoptError: it is malformed; says which line.
    """
    bodies = _sections(text, name)
    if "question" not in bodies:
        raise PrefoptError(f"{name}: a rubric needs a section [question]")
    templates = {
        section: _checked(lines, section, name, first)
        for section, (first, lines) in bodies.items()
        if section not in ("labels", "principles")
    }
    used = {n for section in ("system", "question") if section in templates for n in templates[section].names}
    for one, other in (("examples", "example"), ("principle", "principles")):
        if (one in used or any(one in t.names for t in templates.values())) != (other in bodies):
            raise PrefoptError(
                f"{name}: the section [{other}] and the placeholder {{{one}}} go together; one of them is missing"
            )
    first, lines = bodies.get("labels", (0, []))
    labels = tuple(_label(line, f"{name}:{first + i}") for i, line in enumerate(lines) if line.strip())
    if len({label.strip() for label in labels}) < len(labels):
        raise PrefoptError(f"{name}:{first}: two labels are the same")
    principles = tuple(line.strip() for line in bodies.get("principles", (0, []))[1] if line.strip())
    return Rubric(name, templates, labels, _complete(tuple(examples), templates, name), principles)


def _read(file: Path) -> Rubric:
    try:
        text = file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise PrefoptError(f"{file} is not UTF-8: {error}") from error
    beside = file.with_suffix(".jsonl")
    return parse_rubric(text, str(file), list(_examples(beside)) if beside.is_file() else ())


def _examples(file: Path) -> Iterator[Mapping[str, Any]]:
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip():
            raise PrefoptError(f"{file}:{number}: an empty line; every line is an example")
        try:
            example = json.loads(line)
        except json.JSONDecodeError as error:
            raise PrefoptError(f"{file}:{number}: not JSON: {error}") from error
        if not isinstance(example, dict):
            raise PrefoptError(f"{file}:{number}: an example is an object, not a {type(example).__name__}")
        yield example


def _complete(
    examples: tuple[Mapping[str, Any], ...], templates: Mapping[str, Template], name: str
) -> tuple[Mapping[str, Any], ...]:
    """The examples, each of which has all that is shown of it."""
    template = templates.get("example", templates["question"])
    needed = {n.removeprefix("row.") for n in template.names} - {"examples", "principle"} | {"verdict"}
    for number, example in enumerate(examples, 1):
        if missing := sorted(needed - example.keys()):
            raise PrefoptError(
                f"{Path(name).with_suffix('.jsonl')}:{number}: the example has no {missing[0]!r}.{nearest(missing[0], example)}"
            )
    return examples


def _sections(text: str, name: str) -> dict[str, tuple[int, list[str]]]:
    """For each section, the number of its first line and its lines, without empty ones at both ends."""
    found: dict[str, tuple[int, list[str]]] = {}
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
            if section in found:
                raise PrefoptError(f"{name}:{number}: [{section}] is there twice")
            current = []
            found[section] = (number + 1, current)
        elif current is not None:
            current.append(line.removeprefix("\\") if line.startswith("\\[") else line)
        elif line.strip() and not line.startswith("#"):
            raise PrefoptError(f"{name}:{number}: text before the first section; a comment begins with #")
    return {
        section: _trimmed(first, lines, f"{name}:{first - 1}: [{section}]") for section, (first, lines) in found.items()
    }


def _trimmed(first: int, lines: list[str], where: str) -> tuple[int, list[str]]:
    while lines and not lines[-1].strip():
        lines.pop()
    if not lines:
        raise PrefoptError(f"{where} is empty; leave it out or fill it")
    empty = next(i for i, line in enumerate(lines) if line.strip())
    return first + empty, lines[empty:]


def _checked(lines: Sequence[str], section: str, name: str, first: int) -> Template:
    """A section's template, whose placeholders are all known."""
    try:
        template = parsed(lines)
    except ValueError as error:
        number = next(i for i, line in enumerate(lines) if not is_template(line))
        raise PrefoptError(f"{name}:{first + number}: {error}; a brace that is meant as one is written twice") from None
    for number, line in enumerate(template.lines):
        for _, placeholder in line:
            if placeholder is None or placeholder in PLACEHOLDERS[section]:
                continue
            if placeholder.startswith("row.") and "prompt" in PLACEHOLDERS[section]:
                continue
            known = PLACEHOLDERS[section]
            raise PrefoptError(
                f"{name}:{first + number}: unknown placeholder {{{placeholder}}} in [{section}].{nearest(placeholder, known)} "
                f"Known there: {', '.join(known) or 'none'}{', row.COLUMN' if 'prompt' in known else ''}"
            )
    return template


def _is_package(name: str) -> bool:
    try:
        files(name or "prefopt.feedback.judges.rubrics")
    except (ImportError, TypeError, ValueError):
        return False
    return True


def _label(line: str, where: str) -> str:
    """A label: the line, or what its quotation marks hold, spaces included."""
    if not line.startswith('"'):
        return line.strip()
    try:
        label = json.loads(line)
    except json.JSONDecodeError as error:
        raise PrefoptError(f"{where}: a label in quotation marks is a JSON string: {error}") from error
    if not str(label).strip():
        raise PrefoptError(f"{where}: a label of nothing but space")
    return str(label)
