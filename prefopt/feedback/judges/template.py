"""Texts with placeholders, filled so that what is filled in stays in its place."""

import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from prefopt.feedback.judges.texts import broken, fence, on_its_line, whole


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


def parsed(lines: Sequence[str]) -> Template:
    """The template that these lines are.

    Raises:
        ValueError: a brace that nothing closes, or a format in a placeholder.
    """
    rows = []
    for line in lines:
        parts = []
        for literal, name, spec, conversion in string.Formatter().parse(line):
            if spec or conversion:
                raise ValueError(f"{{{name}}} takes no format")
            parts.append((literal, name))
        rows.append(tuple(parts))
    return Template(tuple(rows))


def is_template(line: str) -> bool:
    """Whether a line alone is one."""
    try:
        parsed([line])
    except ValueError:
        return False
    return True


def _alone(line: Sequence[tuple[str, str | None]]) -> str | None:
    """The placeholder that is all there is on the line."""
    names = [name for _, name in line if name]
    return names[0] if len(names) == 1 and not "".join(literal for literal, _ in line).strip() else None


def _closer(rest: Sequence[tuple[str, str | None]]) -> str:
    """What follows a placeholder on its line, up to the next one."""
    return next((literal.strip() for literal, _ in rest if literal.strip()), "")
