"""Figures as files for a paper: vector and bitmap, in the width of a column and of a page, with captions."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from prefopt.study.comparison.comparison import Comparison
from prefopt.study.report.figures import WIDTH, Figure, drawn, figures, rc_of
from prefopt.study.report.svg import unwarned
from prefopt.study.report.tex import SPECIAL
from prefopt.support.files import replacing, write_whole
from prefopt.support.terminal import one_line

SIZES = {"": (3.25, 8.0), "-wide": (6.75, 9.0)}
"""Ending of a name → width in inches and size of letters in points: a column of two-column styles (ICML, ACL, NeurIPS' half), and
the whole page."""

METADATA = {
    "pdf": {"CreationDate": None, "Creator": None, "Producer": None},
    "svg": {"Date": None, "Creator": None, "Format": None, "Type": None},
    "png": {"Software": None},
}
"""Without dates and versions, so that the same runs make the same bytes."""

OUTSIDE_ASCII = {
    "π": r"$\pi$",
    "β": r"$\beta$",
    "‖": r"$\,\|\,$",
    "√": r"$\surd$",
    "·": r"$\cdot$",
    "×": r"$\times$",
    "…": r"\ldots{}",
}
"""What captions have that pdfTeX does not write without packages."""


def write_figures(comparison: Comparison, folder: Path) -> list[str]:
    """Write figures/NAME.pdf, .svg and .png, the same as NAME-wide, and captions.md and captions.tex, into a folder.

    They show what the page shows, in the same style: arms have the order of the tables. Fonts are embedded (PDF: type 42; SVG:
    outlines). Each file replaces an earlier one of its name in one step.

    Returns:
        The names of the figures; those for which the runs have no numbers are left out.
    """
    target = folder / "figures"
    target.mkdir(parents=True, exist_ok=True)
    shown = [one for one in figures(comparison) if all(_write(one, target, end, *SIZES[end]) for end in SIZES)]
    captions = [(one.name, _caption(one)) for one in shown]
    write_whole(target / "captions.md", "".join(f"**{name}.** {text}\n\n" for name, text in captions))
    write_whole(target / "captions.tex", "".join(_in_latex(captions)))
    return [one.name for one in shown]


def _write(one: Figure, target: Path, ending: str, width: float, size: float) -> bool:
    """One width of a figure; False where there was nothing to draw."""
    flatter = one._replace(height=one.height * (width / WIDTH) ** 0.6)
    with rc_of(one.name, size, embedded=True), drawn(flatter, width, legend=True) as (figure, points):
        if not points:
            return False
        for kind, metadata in METADATA.items():
            paper: dict[str, Any] = {"facecolor": "white"} if kind == "png" else {}
            with replacing(target / f"{one.name}{ending}.{kind}") as file, unwarned():
                figure.savefig(file, format=kind, dpi=300, metadata=metadata, **paper)
    return True


def _caption(one: Figure) -> str:
    """What is shown, of how many seeds, on which rows, with which interval."""
    comparison = one.comparison
    seeds = sorted({sum(value == value for value in row.values.values()) for row in comparison.primary.rows})
    counted = f"{seeds[0]}" if len(seeds) == 1 else f"{seeds[0]} to {seeds[-1]}"
    several = "s" * (seeds[-1] != 1)
    level = f"; intervals: {comparison.confidence:.0%}, Student's t over seeds" if "interval" in one.caption else ""
    return one_line(f"{one.title}. {one.caption}. {counted} seed{several} an arm{level}.")


def _in_latex(captions: list[tuple[str, str]]) -> Iterator[str]:
    r"""A command for each caption: `\caption{\learningcaption}`."""
    yield "% \\input this, then for example: \\includegraphics{figures/learning.pdf} \\caption{\\learningcaption}\n"
    escapes = SPECIAL | OUTSIDE_ASCII
    for name, text in captions:
        words = "".join(escapes.get(letter, letter) for letter in text)
        words = words.replace(r"$\pi$\_ref", r"$\pi_{\mathrm{ref}}$")
        yield f"\\newcommand{{\\{re.sub('[^a-z]', '', name)}caption}}{{{words}}}\n"
