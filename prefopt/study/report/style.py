"""The style of figures: each arm has a colour (safe for the colour-blind), a marker and a line, the same on pages and in papers."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from prefopt.support.terminal import one_line

INK = "#010203"
"""Placeholder for the colour of the text around a figure, light or dark; nothing else in a figure has this colour."""

COLOURS = (INK, "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#B87A00", "#2F8FCB")
"""Okabe & Ito's palette (2008) without yellow; orange and sky blue are darker, so that each colour has a contrast of at least 3:1
with white and with the dark page (WCAG 2.2, 1.4.11)."""
MARKERS = "osD^vPX*<>h"
LINES = ("-", "--", "-.", ":")


@dataclass(frozen=True)
class Look:
    """How an arm is drawn in every figure.

    Attributes:
        number: of the arm, in the order of tables.
    """

    number: int
    colour: str
    marker: str
    line: str

    @property
    def gid(self) -> str:
        """The group that everything of this arm is in, which `svg` turns into data-arm."""
        return f"arm{self.number}"


def looks(arms: Sequence[str]) -> dict[str, Look]:
    """The style of each arm; the baseline, which is first, has the colour of the text."""
    return {
        arm: Look(n, COLOURS[n % len(COLOURS)], MARKERS[n % len(MARKERS)], LINES[n % len(LINES)])
        for n, arm in enumerate(arms)
    }


MOST = 28
"""Letters of a name in a figure; a longer one would leave no room for what is drawn."""


def label(name: str) -> str:
    """A name as matplotlib shows it, without the middle of a long one.

    One that begins with an underscore would be left out of legends, so something that cannot be seen stands before it.
    """
    text = one_line(name)
    if len(text) > MOST:
        text = f"{text[: MOST // 2]}…{text[1 - MOST // 2 :]}"
    return f"\u200b{text}" if text.startswith("_") else text


def rc(name: str, size: float = 9) -> dict[Any, Any]:
    """matplotlib's settings for a figure of this name, with letters of this size in points."""
    ink = ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color")
    return dict.fromkeys(ink, INK) | {
        "font.size": size,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.linewidth": 0.7,
        "axes.titlesize": size,
        "axes.formatter.use_mathtext": False,
        "axes.unicode_minus": True,
        "text.parse_math": False,  # a name of an arm is no formula
        "legend.frameon": False,
        "legend.fontsize": size - 1,
        "svg.fonttype": "none",
        "svg.hashsalt": name,
        "pdf.fonttype": 42,
        "figure.facecolor": "none",
        "axes.facecolor": "none",
        "savefig.facecolor": "none",
    }
