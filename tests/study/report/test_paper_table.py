"""table.tex: numbers, bold by interval, what the caption says, and that LaTeX sets it within a column."""

import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from _folders import finished_run, study

from prefopt import PrefoptError
from prefopt.cli import main
from prefopt.study.comparison.compare import PaperTable, compare
from prefopt.study.report.paper_table import latex, usual

ARMS = {
    "a": [0.0, 0.1, 0.2, 0.1],
    "b_1": [1.0, 1.12, 1.21, 1.09],
    "c": [1.05, 1.0, 1.3, 1.2],
    "d": [0.5, 0.62, 0.7, 0.6],
}


def rows(text: str) -> dict[str, list[str]]:
    lines = [line[:-3].split(" & ") for line in text.splitlines() if line.endswith(r"\\")]
    return {name: cells for name, *cells in lines}


def test_a_cell_is_a_mean_and_its_spread_with_two_figures(tmp_path):
    """Of 0, .1, .2, .1: s = .0816, so ± .13 with t_{3, .975} = 3.182, .041 as a standard error."""
    found = compare([study(tmp_path, ARMS)])
    assert rows(latex(found))["a"][0] == r"$0.10 \pm 0.13$"
    assert rows(latex(replace(found, paper=PaperTable("sd"))))["a"][0] == r"$0.100 \pm 0.082$"
    assert rows(latex(replace(found, paper=PaperTable("sem"))))["a"][0] == r"$0.100 \pm 0.041$"
    assert rows(latex(found))[""][:1] == [r"gold $\uparrow$"]
    assert r"gold $\downarrow$" in latex(compare([tmp_path], better="lower"))


def test_bold_are_the_arms_that_may_be_the_best(tmp_path):
    found = rows(latex(compare([study(tmp_path, ARMS)])))
    assert [arm for arm, cells in found.items() if "mathbf" in cells[0]] == [r"b\_1", "c"]
    alike = latex(compare([study(tmp_path / "alike", {"a": [0.0, 0.1, 0.3], "b": [0.1, 0.0, 0.2]})]))
    assert "mathbf" not in alike and "bold" not in alike  # nobody is worse than anybody


def test_no_end_of_length_is_good_and_at_matched_kl_arms_are_not_compared(tmp_path):
    found = compare([study(tmp_path, ARMS)], metric="gold_at_kl")
    text = latex(replace(found, paper=PaperTable(metrics=("length", "gold_at_kl", "gold"))))
    assert rows(text)[""] == ["length", r"gold at matched KL $\uparrow$", r"gold $\uparrow$"]
    assert all("mathbf" not in "".join(cells[:2]) for cells in rows(text).values())


def test_columns_are_the_usual_or_those_asked_for(tmp_path):
    found = compare([study(tmp_path, ARMS)])
    assert usual(found) == ["gold", "kl", "length"]
    assert rows(latex(replace(found, paper=PaperTable(metrics=("length",)))))[""] == ["length"]
    with pytest.raises(PrefoptError, match=r"there is no table of 'lenght'\. Did you mean 'length'"):
        latex(replace(found, paper=PaperTable(metrics=("lenght",))))


def test_the_caption_says_seeds_interval_part_and_prompts(tmp_path):
    made = study(tmp_path, {"a": ARMS["a"], "b": [1.0, 1.12, None, 1.09]})
    (text,) = re.findall(r"\\caption\{(.*)\}", latex(compare([made])))
    assert text.startswith(
        "Gold and other metrics on test rows, 3 prompts; mean over 3 to 4 seeds $\\pm$ half of Student's 95\\% "
    )
    assert "interval over seeds, for these prompts" in text
    one = latex(compare([study(tmp_path / "one", {"a": [0.0], "b": [0.05]})]))
    assert "mean over 1 seed;" in one and r"\pm" not in rows(one)["a"][0]


def test_the_verb_takes_its_form(tmp_path):
    made = study(tmp_path, ARMS)
    main(["report", str(made), "--out", str(tmp_path / "out"), "--table", "sd", "--metrics", "gold,length"])
    assert "standard deviation between seeds" in (tmp_path / "out/table.tex").read_text()
    assert rows((tmp_path / "out/table.tex").read_text())[""][1:] == ["length"]
    with pytest.raises(SystemExit):
        main(["report", str(made), "--out", str(tmp_path / "other"), "--metrics", "golt"])
    assert not (tmp_path / "other").exists()


DOCUMENT = r"""\documentclass[twocolumn]{article}
\usepackage{booktabs,graphicx,array}
\begin{document}
Table~\ref{tab:gold}.
\input{table}
\end{document}
"""


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="no LaTeX: apt-get install texlive-latex-recommended")
@pytest.mark.parametrize("names", ["short", "long"])
def test_latex_sets_it_within_a_column(tmp_path, names):
    if names == "short":
        arms = {"a": "DPO", "b": "RPO β=0.1", "c": "100% & <i>_{x}$^~\\"}
    else:
        arms = {c: f"DPO-beta=0.{n}-lr=0.00{n}-long_{c * 30}" for n, c in enumerate("abc")}
    for arm, golds in {"a": ARMS["a"], "b": ARMS["b_1"], "c": ARMS["d"]}.items():
        for seed, gold in enumerate(golds):
            recipe = {"name": arms[arm], "seed": seed}
            finished_run(tmp_path / "runs" / f"{arm}{seed}", seed, gold, recipe=recipe)
    (tmp_path / "table.tex").write_text(latex(compare([tmp_path / "runs"])))
    (tmp_path / "paper.tex").write_text(DOCUMENT)
    for _ in range(2):
        line = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "paper.tex"]
        made = subprocess.run(line, cwd=tmp_path, capture_output=True, text=True, errors="replace")
        assert made.returncode == 0, made.stdout[-2000:]
    log = (tmp_path / "paper.log").read_text(errors="replace")
    assert "Overfull" not in log and "undefined" not in log, log


def test_the_tutorials_paper_inputs_it():
    page = (Path(__file__).parents[3] / "docs" / "tutorial.md").read_text(encoding="utf-8")
    assert r"\input{runs/level/table.tex}" in page
