"""Figures as elements of a page: they scale, take the page's font and ink, and have values that can be pointed at."""

import io
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from markupsafe import Markup, escape

from prefopt.study.report.plots import Point
from prefopt.study.report.style import INK, Look
from prefopt.support.terminal import one_line, visible


def svg(figure: Any, name: str, title: str, points: Sequence[Point], looks: dict[str, Look]) -> str:
    """A figure that was drawn, as an element of a page; it shares no id with another.

    What belongs to an arm is in groups with data-arm, its number. Over each of `points` lies an invisible circle, whose title
    is shown by any browser; a description has the first and the last of them for each arm.
    """
    file = io.StringIO()
    with unwarned():
        figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    text = visible(file.getvalue())
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'<g id="arm(\d+)"', r'<g data-arm="\1"', text)
    text = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", text)
    text = re.sub(r"font: ([\w. ]*?[\d.]+px)[^;\"]*", r"font: \1 system-ui, sans-serif", text)
    text = text.replace(INK, "currentColor")
    head, _, body = text.partition(">")
    words = f'<title id="{name}-title">{_text(title)}</title><desc id="{name}-desc">{_text(_described(points))}</desc>'
    head = head.replace("<svg ", f'<svg role="img" aria-labelledby="{name}-title {name}-desc" ', 1)
    return f"{head}>{words}{body}".replace("</svg>", f"{_targets(figure, points, looks)}</svg>")


@contextmanager
def unwarned() -> Iterator[None]:
    """Without matplotlib's warnings on letters that its font lacks: on a page, the page's fonts draw them."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font")
        yield


def _targets(figure: Any, points: Sequence[Point], looks: dict[str, Look]) -> str:
    """Circles to point at, in the units of the picture, which has 72 to an inch and begins at the top."""
    height = figure.get_figheight() * 72
    circles = []
    for point in points:
        x, y = point.axis.transData.transform((point.x, point.y)) * 72 / figure.dpi
        where = f'data-arm="{looks[point.arm].number}" cx="{x:.1f}" cy="{height - y:.1f}"'
        circles.append(f'<circle {where} r="6"><title>{_text(f"{point.arm}, {point.text}")}</title></circle>')
    return f'<g class="points" fill="none" pointer-events="all">{"".join(circles)}</g>'


def _described(points: Sequence[Point]) -> str:
    """The first and the last value of each arm."""
    of_arm: dict[str, list[str]] = {}
    for point in points:
        of_arm.setdefault(point.arm, []).append(point.text)
    return "; ".join(f"{arm}, {' … '.join(dict.fromkeys((said[0], said[-1])))}" for arm, said in of_arm.items())


def _text(words: str) -> str:
    return str(escape(one_line(words)))


def swatch(look: Look) -> Markup:
    """An arm's line and marker, for a legend."""
    from matplotlib.markers import MarkerStyle

    shape = MarkerStyle(look.marker)
    corners: Any = shape.get_path().transformed(shape.get_transform()).to_polygons()[0]
    corner = " ".join(f"{14 + 8 * x:.1f},{8 - 8 * y:.1f}" for x, y in corners)
    dashes = {"-": "", "--": "6 3", "-.": "6 2 1.5 2", ":": "1.5 2"}[look.line]
    colour = look.colour.replace(INK, "currentColor")
    return Markup(
        '<svg class="swatch" viewBox="0 0 28 16" width="28" height="16" aria-hidden="true">'
        '<path d="M0 8H28" stroke="{0}" stroke-width="1.6" stroke-dasharray="{1}"/>'
        '<polygon points="{2}" fill="{0}"/></svg>'
    ).format(colour, dashes, corner)
