"""Rubrics: what a judge is asked, as a text file with sections, and its worked examples, as data beside it."""

import hashlib
import json
import re
import string
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

from prefopt.errors import PrefoptError, nearest
from prefopt.functional import seed_for
from prefopt.judges.texts import broken, conversation, fence, on_its_line, shown, whole
from prefopt.types import Prompt

SECTIONS = ("system", "question", "thought", "rationale", "answer", "labels", "example", "principles")
"""What a rubric may hold; docs/judges.md says what each is for."""

TEXTS = ("prompt", "completion", "completion_a", "completion_b")
"""Placeholders for other people's text; `row.NAME`, a column of the row, is another."""

PLACEHOLDERS = {
    "system": (*TEXTS, "examples", "principle"),
    "question": (*TEXTS, "examples", "principle"),
    "thought": ("principle",),
    "rationale": ("rationale",),
    "answer": (),
    "example": (*TEXTS, "principle", "verdict", "rationale"),
}

Turns = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Template:
    """A section's text: lines of (literal, name of the placeholder after it or None).

    A placeholder for other people's text that is alone on its line stands in a fence that the text cannot close. Any other
    keeps the text on its line, and free of what follows it there.
    """

    lines: tuple[tuple[tuple[str, str | None], ...], ...] = ()

    @property
    def names(self) -> set[str]:
        """The placeholders in it."""
        return {name for line in self.lines for _, name in line if name}

    def fill(self, values: Mapping[str, str], own: Mapping[str, str]) -> tuple[str, int]:
        """The text with every placeholder filled, and how many marks had to be broken up in it.

        Args:
            values: other people's texts.
            own: the rubric's and the judge's own words, which stand as they are.
        """
        clean = {name: broken(whole(values[name])) for name in sorted(self.names - own.keys())}
        count = sum(found for _, found in clean.values())
        bar = fence([text for text, _ in clean.values()])
        lines = []
        for line in self.lines:
            alone = _alone(line)
            if alone in clean:
                lines += [bar, clean[alone][0], bar]
                continue
            filled = ""
            for i, (literal, name) in enumerate(line):
                text = own.get(name, "") if name else ""
                if name in clean:
                    text, found = on_its_line(clean[name][0], _closer(line[i + 1 :]))
                    count += found
                filled += literal + text
            lines.append(filled)
        return "\n".join(lines), count


@dataclass(frozen=True)
class Asked:
    """A rubric filled for one question.

    Attributes:
        turns: the conversation, the user's turn last.
        neutralised: marks in other people's text that were broken up.
    """

    turns: Turns
    neutralised: int


@dataclass(frozen=True)
class Rubric:
    """What a judge is asked.

    Attributes:
        name: the file, for messages.
        sections: its templates, by name.
        labels: what the answer may be; empty leaves it to the mode.
        examples: worked ones, in the file of the same name that ends in .jsonl: the placeholders of the question, `verdict`, and
            `rationale` for a chain of thought.
        principles: of which each prompt gets one as `{principle}`.
    """

    name: str
    sections: Mapping[str, Template]
    labels: tuple[str, ...] = ()
    examples: tuple[Mapping[str, Any], ...] = ()
    principles: tuple[str, ...] = field(default=())

    @property
    def fingerprint(self) -> str:
        """Of all that a judge is shown, whatever the file is called."""
        shown = (
            sorted(self.sections.items()),
            self.labels,
            [sorted(e.items()) for e in self.examples],
            self.principles,
        )
        return hashlib.sha256(repr(shown).encode()).hexdigest()

    @property
    def compares(self) -> bool:
        """Whether it shows two completions at once."""
        return bool({"completion_a", "completion_b"} & self._names)

    def check(self, needed: Sequence[str], labels: Sequence[str], thought: bool) -> None:
        """Refuse a rubric that does not show what a mode judges, or examples that do not fit.

        Args:
            needed: placeholders of the completions: ("completion",), or both of a pair.
            labels: that verdicts of examples must be among.
            thought: whether a chain of thought is asked for.

        Raises:
            PrefoptError: says which file, and what to write.
        """
        every = set(TEXTS[1:])
        for name in sorted(set(needed) - self._names):
            raise PrefoptError(
                f"{self.name}: this mode judges {{{name}}}, which the rubric does not show; put it into [question]"
            )
        for name in sorted((every - set(needed)) & self._names):
            raise PrefoptError(f"{self.name}: {{{name}}} is for another mode; this one shows {' and '.join(needed)}")
        known = [label.strip() for label in labels]
        for i, example in enumerate(self.examples):
            if str(example["verdict"]) not in known:
                raise PrefoptError(
                    f"{self._examples_name}:{i + 1}: the verdict {example['verdict']!r} is no label; labels: {', '.join(known)}"
                )
            if thought and "rationale" not in example:
                raise PrefoptError(
                    f"{self._examples_name}:{i + 1}: a chain of thought needs a `rationale` in every example"
                )

    def ask(
        self,
        prompt: Prompt,
        texts: Mapping[str, str],
        row: Mapping[str, Any],
        labels: Sequence[str],
        thought: bool,
        seed: int = 0,
    ) -> Asked:
        """The question about these completions.

        Args:
            prompt: what they answer.
            texts: the completions by their placeholders.
            row: the other columns, for `{row.NAME}`.
            labels: of the answer, which examples show.
            thought: ask for a rationale.
            seed: of the principle.

        Raises:
            PrefoptError: the row has no column of that name.
        """
        values = {"prompt": conversation(prompt), **texts, **self._columns(row)}
        own = {"examples": self._listed(labels), "principle": self._principle(values, seed)}
        turns: list[tuple[str, str]] = []
        neutralised = 0
        if "system" in self.sections:
            text, neutralised = self.sections["system"].fill(values, own)
            turns.append(("system", text))
        if "example" not in self.sections:
            turns += self._shown(labels, thought, seed)
        text, count = self._question(values, own, thought)
        return Asked((*turns, ("user", text)), neutralised + count)

    def start(self, rationale: str | None = None) -> str:
        """How the answer begins: the rationale, where there is one, and [answer]."""
        answer = self._plain("answer")
        if rationale is None:
            return answer
        template = self.sections.get("rationale", _template(["{rationale}"]))
        return template.fill({}, {"rationale": broken(whole(rationale))[0]})[0] + "\n" + answer

    @property
    def mark(self) -> str:
        """What stands before a verdict in a written answer: [answer] without the space around it."""
        return self._plain("answer").strip()

    def _question(self, values: Mapping[str, str], own: Mapping[str, str], thought: bool) -> tuple[str, int]:
        text, count = self.sections["question"].fill(values, own)
        if thought and "thought" in self.sections:
            asks, _ = self.sections["thought"].fill({}, own)
            text = f"{text}\n\n{asks}"
        return text, count

    def _shown(self, labels: Sequence[str], thought: bool, seed: int) -> Iterator[tuple[str, str]]:
        """The examples as turns."""
        for example in self.examples:
            values = _values(example)
            own = {"examples": "", "principle": self._principle(values, seed)}
            yield "user", self._question(values, own, thought)[0]
            label = next(label for label in labels if label.strip() == str(example["verdict"]))
            yield "assistant", self.start(str(example["rationale"]) if thought else None) + label

    def _listed(self, labels: Sequence[str]) -> str:
        """The examples as text, each by [example]."""
        if "example" not in self.sections:
            return ""
        own = ("verdict", "rationale", "principle")
        written = [
            self.sections["example"].fill(
                _values(example), {"principle": "", **{name: str(example[name]) for name in own if name in example}}
            )[0]
            for example in self.examples
        ]
        return "\n\n".join(written)

    def _columns(self, row: Mapping[str, Any]) -> dict[str, str]:
        """What `{row.NAME}` stands for."""
        names = {name.removeprefix("row.") for name in self._names if name.startswith("row.")}
        for name in sorted(names - row.keys()):
            raise PrefoptError(
                f"{self.name}: the row has no column {name!r}.{nearest(name, row)} It has: {', '.join(row) or 'none'}"
            )
        return {f"row.{name}": shown(row[name]) for name in names}

    def _principle(self, values: Mapping[str, str], seed: int) -> str:
        """One of the principles; the prompt and the seed decide which, so that both orders of a pair are under the same."""
        if not self.principles:
            return ""
        return self.principles[seed_for(seed, "principle", whole(values.get("prompt", ""))) % len(self.principles)]

    def _plain(self, section: str) -> str:
        return self.sections[section].fill({}, {})[0] if section in self.sections else ""

    @property
    def _names(self) -> set[str]:
        shown = [self.sections[name].names for name in ("system", "question") if name in self.sections]
        return set().union(*shown)

    @property
    def _examples_name(self) -> str:
        return str(Path(self.name).with_suffix(".jsonl"))


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
    place = files(package or "prefopt.judges.rubrics") if _is_package(package) else None
    if place is None or not (found := place / (resource if package else f"{name}.txt")).is_file():
        known = sorted(
            path.name.removesuffix(".txt")
            for path in files("prefopt.judges.rubrics").iterdir()
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
    labels = tuple(
        _label(line, f"{name}:{first + i}")
        for first, lines in [bodies.get("labels", (0, []))]
        for i, line in enumerate(lines)
        if line.strip()
    )
    if len({label.strip() for label in labels}) < len(labels):
        raise PrefoptError(f"{name}:{bodies['labels'][0]}: two labels are the same")
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
        template = _template(lines)
    except ValueError as error:
        number = next(i for i, line in enumerate(lines) if not _is_template(line))
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


def _template(lines: Sequence[str]) -> Template:
    parsed = []
    for line in lines:
        parts = []
        for literal, name, spec, conversion in string.Formatter().parse(line):
            if spec or conversion:
                raise ValueError(f"{{{name}}} takes no format")
            parts.append((literal, name))
        parsed.append(tuple(parts))
    return Template(tuple(parsed))


def _is_template(line: str) -> bool:
    try:
        _template([line])
    except ValueError:
        return False
    return True


def _is_package(name: str) -> bool:
    try:
        files(name or "prefopt.judges.rubrics")
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


def _alone(line: Sequence[tuple[str, str | None]]) -> str | None:
    """The placeholder that is all there is on the line."""
    names = [name for _, name in line if name]
    return names[0] if len(names) == 1 and not "".join(literal for literal, _ in line).strip() else None


def _closer(rest: Sequence[tuple[str, str | None]]) -> str:
    """What follows a placeholder on its line, up to the next one."""
    return next((literal.strip() for literal, _ in rest if literal.strip()), "")


def _values(example: Mapping[str, Any]) -> dict[str, str]:
    """An example's texts, by the names of the placeholders."""
    named = {name if name in TEXTS else f"row.{name}": value for name, value in example.items()}
    return {name: conversation(value) if name == "prompt" else shown(value) for name, value in named.items()}
