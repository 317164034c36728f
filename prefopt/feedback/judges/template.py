"""jinja2 templates of a rubric, rendered so that no text that is filled in can leave its place.

An expression in a template is not rendered as its text but as a mark of its place. When all marks and the rubric's own words are in
their lines, each text is made safe for the line that it stands on, and put there. Whatever expressions, conditions and loops made
the line, other people's text is therefore either fenced or kept on its line.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar

import jinja2
from jinja2 import StrictUndefined, Undefined, meta, nodes, pass_context
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment

from prefopt.feedback.judges.texts import broken, fence, on_its_line, shown, visible, whole
from prefopt.support.errors import PrefoptError, nearest

T = TypeVar("T")

MARKS = ("\ue000", "\ue001")
PLACE = re.compile(f"{MARKS[0]}(\\d+){MARKS[1]}")
PLACES = "places of this text"
"""Where a rendering keeps its texts: no name that a template could use."""

STATEMENTS = (nodes.Output, nodes.If, nodes.For, nodes.Assign)
"""Statements that a template may have. Others (macro, filter, include, …) render a part of it, and what they return would be text
of which nobody knows any longer whose it is."""

PLAIN = re.compile(r"\{\{ *([\w.]+) *\}\}")


class Own(str):
    """The rubric's or the judge's own words, which are rendered as they are."""


@pass_context
def _placed(context: Context, value: Any) -> str:
    """The mark that is rendered in place of a value."""
    if isinstance(value, Undefined):
        return str(value)  # raises, except for `a if b` without an else, which is nothing
    places = context[PLACES]
    places.append(value if isinstance(value, Own) else shown(value))
    return f"{MARKS[0]}{len(places) - 1}{MARKS[1]}"


METHODS = {
    "capitalize", "casefold", "count", "endswith", "find", "get", "isalpha", "isdigit", "islower", "isspace", "istitle", "isupper",
    "items", "keys", "lower", "lstrip", "partition", "removeprefix", "removesuffix", "rpartition", "rsplit", "rstrip", "split",
    "splitlines", "startswith", "strip", "title", "upper", "values",
}  # fmt: skip
"""Methods that a template may call: none makes a text longer than it was."""

GROWING = {
    "batch",
    "center",
    "filesizeformat",
    "format",
    "indent",
    "pprint",
    "random",
    "slice",
    "tojson",
    "urlize",
    "wordwrap",
    "xmlattr",
}
"""Filters that a template cannot have: from little they make much, or something else each time."""

LONGEST = 10_000_000
"""Characters of what a template writes."""
STEPS = 100_000
"""Steps of all its loops together."""
STEPPED, BOUNDED = "counted steps", "bounded text"
"""Filters that are put around every loop and every text that is put together: no names that a template could use."""


class _TooMuchError(Exception):
    """A template writes without end."""

    def __str__(self) -> str:
        return f"it writes more than {LONGEST} characters, or its loops go round more than {STEPS} times"


class _Environment(ImmutableSandboxedEnvironment):
    """A sandbox in which `row.items` is the column of this name and no method of a dictionary, and nothing grows without bounds."""

    intercepted_binops = frozenset({"*", "**", "%", "+"})

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        if operator == "+":
            return _bounded(left + right)
        if not all(isinstance(side, int | float) and abs(side) < 1e6 for side in (left, right)):
            raise TypeError(f"{operator} is for numbers below a million")
        if operator == "**" and abs(right) > 16:
            raise _TooMuchError
        return super().call_binop(context, operator, left, right)

    def is_safe_callable(self, obj: Any) -> bool:
        return getattr(obj, "__name__", "") in METHODS and super().is_safe_callable(obj)

    def getattr(self, obj: Any, attribute: str) -> Any:
        return self.getitem(obj, attribute) if isinstance(obj, Mapping) else super().getattr(obj, attribute)

    def getitem(self, obj: Any, argument: Any) -> Any:
        if not isinstance(obj, Mapping) or argument in obj:
            return super().getitem(obj, argument)
        known = [str(name) for name in obj]
        hint = (
            f"the row has no column {argument!r}.{nearest(str(argument), known)} It has: {', '.join(known) or 'none'}"
        )
        return self.undefined(hint, obj=obj, name=argument)


def _bounded(value: Any) -> Any:
    """The value, if it is not too long."""
    if isinstance(value, str | list | tuple) and len(value) > LONGEST:
        raise _TooMuchError
    return value


def _replace(text: Any, old: Any, new: Any, count: int | None = None) -> str:
    """jinja2's `replace`, bounded."""
    text, old, new = str(text), str(old), str(new)
    times = text.count(old) if count is None else min(count, text.count(old))
    if len(text) + times * len(new) > LONGEST:
        raise _TooMuchError
    return text.replace(old, new, times)


def _join(values: Any, separator: Any = "", attribute: str | None = None) -> str:
    """jinja2's `join`, bounded."""
    texts = [str(value if attribute is None else value[attribute]) for value in values]
    if sum(map(len, texts)) + len(texts) * len(str(separator)) > LONGEST:
        raise _TooMuchError
    return str(separator).join(texts)


@pass_context
def _steps(context: Context, values: Any) -> Iterator[Any]:
    """What a loop goes through, counted for the whole template."""
    places = context[PLACES]
    for value in values:
        places.steps += 1
        if places.steps > STEPS:
            raise _TooMuchError
        yield value


class _Places(list[str]):
    """The texts of a rendering in the order of their marks, and how long all are.

    Attributes:
        size: characters.
        steps: of loops.
    """

    size = 0
    steps = 0

    def append(self, text: str) -> None:
        """One more.

        Raises:
            _TooMuchError: there are too many.
        """
        self.size += len(text) + 8
        if self.size > LONGEST:
            raise _TooMuchError
        super().append(text)


def _environment() -> _Environment:
    environment = _Environment(undefined=StrictUndefined, finalize=_placed, trim_blocks=True, lstrip_blocks=True)
    environment.globals.clear()
    for name in GROWING:
        environment.filters.pop(name, None)
    environment.filters |= {"replace": _replace, "join": _join, STEPPED: _steps, BOUNDED: _bounded}
    return environment


ENVIRONMENT = _environment()


@dataclass(frozen=True, repr=False)
class Template:
    """The template of one section.

    A value that is alone on its line stands in a fence that no text can close. Any other is kept on its line, and what follows it
    there is broken up in it. Only `Own` texts are rendered as they are; the result of a filter is not `Own`.

    Attributes:
        source: in jinja2, sandboxed and with strict undefined values. Lines of nothing but a statement leave no line.
        where: the file and section, for messages.
    """

    source: str
    where: str

    def check(self, known: Sequence[str]) -> None:
        """Refuse a template that is not jinja2, or has names that are none of those known.

        Raises:
            PrefoptError: says in which line.
        """
        for node in self._tree.find_all((nodes.Stmt,)):
            if not isinstance(node, STATEMENTS) or (isinstance(node, nodes.For) and node.recursive):
                what = type(node).__name__.lower()
                raise PrefoptError(
                    f"{self.where}, line {node.lineno}: a rubric cannot have the statement {what}; it can have if, for and set"
                )
        _ = self._compiled
        for reach in self._tree.find_all(nodes.Getattr):
            if reach.attr.startswith("_"):
                raise PrefoptError(
                    f"{self.where}, line {reach.lineno}: a rubric cannot reach {reach.attr!r}. Known there: "
                    f"{', '.join(known) or 'none'}, and columns as row.NAME"
                )
        for name in sorted(self.names - set(known)):
            line = next(node.lineno for node in self._tree.find_all(nodes.Name) if node.name == name)
            raise PrefoptError(
                f"{self.where}, line {line}: unknown name {name!r}.{nearest(name, known)} Known there: {', '.join(known) or 'none'}"
            )

    @property
    def names(self) -> set[str]:
        """The names that it uses and does not define."""
        return meta.find_undeclared_variables(self._tree)

    def fill(self, values: Mapping[str, Any], own: Mapping[str, str]) -> tuple[str, int]:
        """The text with every value in its place, and how many marks had to be broken up in the values.

        Args:
            values: other people's texts, and `row`, the other columns.
            own: the rubric's and the judge's own words.

        Raises:
            PrefoptError: the row has no such column, or an expression fails.
        """
        places = _Places()
        words = {name: Own(text) for name, text in own.items()}
        try:
            rendered = self._compiled.render({**values, **words, PLACES: places})
        except Exception as error:  # an expression may fail in any way
            raise PrefoptError(f"{self.where}: {error}") from error
        others = {i: _harmless(text) for i, text in enumerate(places) if not isinstance(text, Own)}
        texts = dict(enumerate(places)) | {i: text for i, (text, _) in others.items()}
        count = sum(marks for _, marks in others.values())
        bar = fence([text for text, _ in others.values()])
        lines = []
        for line in rendered.split("\n"):
            literals, numbers = PLACE.split(line)[::2], [int(n) for n in PLACE.split(line)[1::2]]
            if len(numbers) == 1 and numbers[0] in others and not "".join(literals).strip():
                lines += [bar, texts[numbers[0]], bar]
                continue
            filled = literals[0]
            for i, n in enumerate(numbers):
                text, marks = texts[n], 0
                if n in others:
                    text, marks = on_its_line(text, _closer(literals[i + 1 :]))
                count += marks
                filled += text + literals[i + 1]
            lines.append(filled)
        return "\n".join(lines), count

    def __repr__(self) -> str:
        """What fingerprints are made of: for a template of nothing but names, lines of (literal, name), as in older reports."""
        if re.search(r"\{[{%#]", PLAIN.sub("", self.source)):
            return f"Template({self.source!r})"
        lines = []
        for line in self.source.split("\n"):
            *pairs, rest = PLAIN.split(line)
            parts: list[tuple[str, str | None]] = list(zip(pairs[::2], pairs[1::2], strict=True))
            lines.append(tuple([*parts, (rest, None)] if rest else parts))
        return f"Template(lines={tuple(lines)!r})"

    @cached_property
    def _tree(self) -> nodes.Template:
        if any(mark in self.source for mark in MARKS):
            raise PrefoptError(f"{self.where}: the characters U+E000 and U+E001 cannot stand in a rubric")
        return self._parsed()

    def _parsed(self) -> nodes.Template:
        return self._understood(lambda: ENVIRONMENT.parse(self.source))

    @cached_property
    def _compiled(self) -> jinja2.Template:
        return self._understood(lambda: ENVIRONMENT.from_string(_guarded(self._parsed())))

    def _understood(self, read: Callable[[], T]) -> T:
        try:
            return read()
        except jinja2.TemplateSyntaxError as error:
            raise PrefoptError(f"{self.where}, line {error.lineno}: {error.message}") from None


def _guarded(tree: nodes.Template) -> nodes.Template:
    """The template with every loop counted, and every text that `~` puts together bounded."""
    for loop in tree.find_all(nodes.For):
        loop.iter = nodes.Filter(loop.iter, STEPPED, [], [], None, None, lineno=loop.lineno)
    for holder in [tree, *tree.find_all(nodes.Node)]:
        for name, value in holder.iter_fields():
            if isinstance(value, nodes.Concat):
                setattr(holder, name, _bound(value))
            elif isinstance(value, list):
                value[:] = [_bound(one) if isinstance(one, nodes.Concat) else one for one in value]
    tree.set_environment(ENVIRONMENT)
    return tree


def _bound(text: nodes.Concat) -> nodes.Filter:
    return nodes.Filter(text, BOUNDED, [], [], None, None, lineno=text.lineno)


def _harmless(text: str) -> tuple[str, int]:
    """Somebody else's text with nothing in it that a model or a terminal obeys, and how often there was."""
    text, unseen = visible(whole(text))
    text, marks = broken(text)
    return text, unseen + marks


def _closer(literals: Sequence[str]) -> str:
    """What follows a value on its line."""
    return next((literal.strip() for literal in literals if literal.strip()), "")
