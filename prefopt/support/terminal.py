"""Where people read: control characters are shown and not obeyed, whoever wrote them.

Completions, prompts, names of arms, answers of servers and files of strangers all reach a terminal or a page. An escape sequence in
one of them could clear the screen, change the title, hide lines or write elsewhere; an override of the writing direction makes text
read as something else.
"""

import os
import re
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.text import Text

HIDDEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
"""Controls of ASCII (all but line feed and tab) and of Latin-1, overrides of direction, and halves of surrogate pairs, which no
stream can encode."""


def visible(text: str) -> str:
    r"""The text with every hidden character as Python would write it: an escape becomes the four characters `\x1b`."""
    return HIDDEN.sub(lambda found: _written_out(found[0]), text)


def one_line(text: str) -> str:
    r"""The same, for names: line feeds and tabs are written out, too."""
    return visible(text).replace("\n", r"\n").replace("\t", r"\t")


def _written_out(character: str) -> str:
    number = ord(character)
    return f"\\x{number:02x}" if number < 0x100 else f"\\u{number:04x}"


class Terminal(Console):
    """A console of rich that prints text as it is: no markup, no emoji codes, and control characters visible.

    Colours come from styles. All printing of the package goes through this class, also into files.

    Args:
        options: those of rich's `Console`.
    """

    def __init__(self, **options: Any):
        super().__init__(**{"markup": False, "emoji": False, "highlight": False} | options)

    def render_str(self, text: str, **options: Any) -> Text:
        """Text for printing; rich itself would drop some controls without a word."""
        return super().render_str(visible(text), **options)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """What is printed of anything, the cells of tables included."""
        shown = _shown(renderable) if isinstance(renderable, Text) else renderable
        return super().render(shown, options)

    def on_broken_pipe(self) -> None:
        """Nobody reads any more (`prefopt objectives | head`): the work goes on, in silence."""
        self.quiet = True
        with suppress(
            OSError, ValueError
        ):  # what is still buffered goes nowhere, or the end of the process would report it
            os.dup2(os.open(os.devnull, os.O_WRONLY), self.file.fileno())


def _shown(text: Text) -> Text:
    """The same text with its styles, its hidden characters visible."""
    places: Sequence[int] = sorted({place for found in HIDDEN.finditer(text.plain) for place in found.span()})
    if not places:
        return text
    parts = text.divide(places)
    for part in parts:
        if part.plain and HIDDEN.match(part.plain):
            styles = [span.style for span in part.spans]
            part.plain = visible(part.plain)  # which cuts the spans to the length that the text had
            for style in styles:
                part.stylize(style)
    shown = text.blank_copy()
    for part in parts:
        shown.append_text(part)
    return shown
