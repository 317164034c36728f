"""The style of figures: each arm has a colour (safe for the colour-blind), a marker and a line; SVG for light and dark pages."""

import io
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from prefopt.support.terminal import one_line, visible

INK = "#010203"
"""Placeholder for the colour of the text around a figure, light or dark; nothing else in a figure has this colour."""

COLOURS = (INK, "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
"""Okabe & Ito's palette without yellow, which cannot be seen on white."""
MARKERS = "osD^vPX*<>h"
LINES = ("-", "--", "-.", ":")


@dataclass(frozen=True)
class Look:
    """How an arm is drawn in every figure."""

    colour: str
    marker: str
    line: str


def looks(arms: Sequence[str]) -> dict[str, Look]:
    """The style of each arm; the baseline, which is first, has the colour of the text."""
    return {
        arm: Look(COLOURS[n % len(COLOURS)], MARKERS[n % len(MARKERS)], LINES[n % len(LINES)])
        for n, arm in enumerate(arms)
    }


def label(name: str) -> str:
    """A name as matplotlib shows it; one that begins with an underscore would be left out of legends."""
    return f"\u200b{one_line(name)}" if name.startswith("_") else one_line(name)


def rc(name: str) -> dict[Any, Any]:
    """matplotlib's settings for a figure of this name."""
    ink = ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color")
    return dict.fromkeys(ink, INK) | {
        "font.size": 9,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.linewidth": 0.7,
        "axes.titlesize": 9,
        "axes.formatter.use_mathtext": False,
        "axes.unicode_minus": True,
        "text.parse_math": False,  # a name of an arm is no formula
        "legend.frameon": False,
        "legend.fontsize": 8,
        "svg.fonttype": "none",
        "svg.hashsalt": name,
        "figure.facecolor": "none",
        "axes.facecolor": "none",
        "savefig.facecolor": "none",
    }


def svg(figure: Any, name: str, title: str) -> str:
    """The figure as an element of a page: it scales, takes the page's font and ink, and shares no id with another."""
    from markupsafe import escape

    file = io.StringIO()
    with warnings.catch_warnings():
        # The page's fonts draw the letters, not matplotlib's, which may not have them.
        warnings.filterwarnings("ignore", "Glyph .* missing from font")
        figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    text = visible(file.getvalue())
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", text)
    text = re.sub(r"font: ([\w. ]*?[\d.]+px)[^;\"]*", r"font: \1 system-ui, sans-serif", text)
    text = text.replace(INK, "currentColor")
    return text.replace("<svg ", f'<svg role="img" aria-label="{escape(visible(title))}" ', 1)
