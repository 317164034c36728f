"""Figures for papers: what the page shows, in files that a paper takes in."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from _folders import failed_run, finished_run

from prefopt.cli import main
from prefopt.study.comparison.compare import compare
from prefopt.study.report.figure_files import METADATA, SIZES, write_figures
from prefopt.study.report.figures import WIDTH, drawn, figures, rc_of


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    """Two arms, and a seed that failed; as few as draw every figure but that of rollouts."""
    folder = tmp_path_factory.mktemp("runs")
    for n, arm in enumerate(("a_1 & b", "rpo")):
        for seed in range(3 - n):
            finished_run(folder / "arms" / arm / f"seed-{seed}", seed, n + seed / 10)
    failed_run(folder / "arms" / "rpo" / "seed-2")
    return compare([folder])


NAMES = ["differences", "frontier", "learning", "length", "logratio", "rewards"]


@pytest.fixture(scope="module")
def files(compared, tmp_path_factory) -> Path:
    """As the verb writes them."""
    folder = tmp_path_factory.mktemp("paper")
    runs = {str(run.folder.parent.parent.parent) for run in compared.runs}
    main(["report", *runs, "--out", str(folder), "--figures"])
    kinds = [f"{name}{end}.{kind}" for name in NAMES for end in SIZES for kind in METADATA]
    assert sorted(file.name for file in (folder / "figures").iterdir()) == sorted(
        [*kinds, "captions.md", "captions.tex"]
    )
    return folder / "figures"


def test_each_has_the_width_of_a_column_or_a_page_and_its_fonts(files):
    for file in files.glob("*.pdf"):
        content = file.read_bytes()
        (box,) = re.findall(rb"/MediaBox \[ 0 0 ([\d.]+) [\d.]+ \]", content)
        assert float(box) / 72 == pytest.approx(SIZES["-wide" if "-wide" in file.name else ""][0], abs=0.01)
        assert b"/FontFile2" in content and b"/Type3" not in content  # type 42 is TrueType, whole
    for file in files.glob("*.svg"):
        assert "<text" not in file.read_text()  # outlines
    for file in files.glob("*.png"):
        assert int.from_bytes(file.read_bytes()[16:20]) == round(
            SIZES["-wide" if "-wide" in file.name else ""][0] * 300
        )


@pytest.mark.slow
def test_the_same_runs_make_the_same_bytes_without_a_date(compared, files, tmp_path):
    assert write_figures(compared, tmp_path) == NAMES
    for file in files.iterdir():
        assert file.read_bytes() == (tmp_path / "figures" / file.name).read_bytes(), file.name
        assert not re.search(rb"CreationDate|<dc:date>|tIME", file.read_bytes())


def test_they_show_what_the_page_shows(compared):
    """The same values, arms in the order of the tables."""
    for one in figures(compared):
        seen = []
        for width, legend in ((WIDTH, False), (SIZES[""][0], True)):
            with rc_of(one.name), drawn(one, width, legend) as (figure, points):
                seen.append([(point.arm, point.x, point.y, point.text) for point in points])
                arms = [text.get_text() for of in figure.legends for text in of.get_texts()]
                assert arms == [arm for arm in compared.arms if arm in arms]
        assert seen[0] == seen[1]


def test_captions_say_of_how_many_seeds_with_which_interval(files):
    captions = (files / "captions.md").read_text()
    assert "2 to 3 seeds an arm; intervals: 95%, Student's t over seeds." in captions
    assert "on validation rows while training" in captions
    assert r"Differences to a\_1 \& b in gold" in (files / "captions.tex").read_text()


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="no LaTeX: apt-get install texlive-latex-base")
def test_latex_takes_them_in(files, tmp_path):
    names = re.findall(r"newcommand\{\\(\w+)caption\}", (files / "captions.tex").read_text())
    assert len(names) == 6
    floats = [
        rf"\begin{{figure}}\includegraphics{{{files}/{name}{end}.pdf}}\caption{{\{name}caption}}\end{{figure}}"
        for name in names
        for end in SIZES
    ]
    head = r"\documentclass{article}\usepackage{graphicx}\begin{document}" + rf"\input{{{files}/captions.tex}}"
    (tmp_path / "paper.tex").write_text("\n".join([head, *floats, r"\end{document}"]))
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "paper.tex"]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 0, ended.stdout[-2000:]
    assert "Missing character" not in ended.stdout
    assert (tmp_path / "paper.pdf").stat().st_size > 20_000
