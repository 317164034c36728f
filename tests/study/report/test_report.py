"""The report of a comparison: what is in it, that nothing in it can harm, and that a browser shows it."""

import csv
import io
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pytest
from _folders import finished_run, study
from rich.console import Console

from prefopt.cli import main
from prefopt.study.comparison.compare import compare
from prefopt.study.comparison.comparison import Comparison
from prefopt.study.report import show, write_report
from prefopt.study.report.page import differing
from prefopt.study.report.style import looks
from prefopt.study.report.text_tables import ends, number, spread

ARMS = {"dpo": [0.0, 0.1, 0.2, 0.1], "rpo": [1.0, 1.12, 1.21, 1.09], "odd & <i>": [0.3, -0.2, 0.4, None]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    made = study(tmp_path_factory.mktemp("study"), ARMS)
    finished_run(made / "arms" / "online" / "seed-0", 0, 0.2, recipe={"train": {"batch_size": 8, "lr": 0.001}})
    return made


@pytest.fixture(scope="module")
def found(folder) -> Comparison:
    return compare([folder], baseline="dpo", question="Is <rpo> better?", confounds=["online: train.batch_size is 8"])


@pytest.fixture(scope="module")
def written(found, tmp_path_factory) -> Path:
    return write_report(found, tmp_path_factory.mktemp("report"))


@pytest.fixture(scope="module")
def html(written) -> str:
    return written.read_text()


HEAD = r"arm & seeds & mean & difference & simultaneous & p (Holm) & r & verdict \\"


class Outline(HTMLParser):
    """Tags, ids, addresses and text of a page."""

    def __init__(self, text: str):
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.words = ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_data(self, data):
        self.words += data


def test_everything_is_on_the_page(found, html):
    seen = Outline(html)
    for text in (
        found.verdict,
        "Is <rpo> better?",
        *found.notes,
        *found.confounds,
        "odd & <i>",
        "so <b>bold</b> it was",
    ):
        assert text in seen.words
    for heading in ("gold", "Every seed", "Wins", "Samples", "Costs", "Environment", "Recipes", "gold at matched KL"):
        assert heading in seen.words
    assert "odd & <i>, seed 3 failed: ValueError: the loss is nan" in seen.words
    assert "no number" in seen.words
    assert seen.tags.count("figure") == html.count('<svg role="img"') == 6


def test_what_models_and_people_write_is_text(html):
    """The only markup is the template's and matplotlib's."""
    tags = Outline(html).tags
    assert "script" not in tags
    assert "b" not in tags
    assert "i" not in tags


def test_the_page_needs_nothing_else(html):
    seen = Outline(html)
    addresses = [value for name, value in seen.attributes if name in ("src", "href", "xlink:href")]
    assert all(address.startswith("#") for address in addresses)
    assert not re.search(r"@import|url\((?!#)", html)
    ids = [value for name, value in seen.attributes if name == "id"]
    assert len(ids) == len(set(ids))
    assert {address[1:] for address in addresses} | set(re.findall(r"url\(#([\w-]+)\)", html)) <= set(ids)


def test_every_seed_is_drawn(html):
    """Of the frontier: a marker for each of the 4 + 4 + 3 + 1 finished runs, where it ends; the legend's are not counted."""
    figure = next(part for part in html.split("<figure>") if "the path of every seed" in part)
    drawn = re.findall(r'<g clip-path="[^"]*">\s*<use ', figure)
    assert len(drawn) == 12


def test_the_same_runs_make_the_same_files(found, written, tmp_path):
    first, second = written.parent, write_report(found, tmp_path).parent
    assert sorted(file.name for file in first.iterdir()) == ["report.html", "results.csv", "table.md", "table.tex"]
    for file in first.iterdir():
        assert file.read_bytes() == (second / file.name).read_bytes()


def test_results_in_full_precision_and_time_last(written):
    text = (written.parent / "results.csv").read_text()
    rows = list(csv.DictReader(io.StringIO(text)))
    assert [row["arm"] for row in rows] == ["dpo"] * 4 + ["odd & <i>"] * 4 + ["online"] + ["rpo"] * 4
    rpo = next(row for row in rows if (row["arm"], row["seed"]) == ("rpo", "1"))
    assert float(rpo["gold"]) == 1.12
    assert float(rpo["gold_at_kl"]) == 1.12  # all runs end at 4 nats
    failed = next(row for row in rows if row["state"] == "failed")
    assert failed["gold"] == ""
    assert list(rpo)[-1] == "seconds"


def test_tables_for_papers(found, written):
    folder = written.parent
    lines = (folder / "table.md").read_text().splitlines()
    assert lines[0] == found.verdict.replace("<", r"\<")
    assert lines[-4].startswith("| dpo | 4 | 0.100 [−0.0299, 0.230] | baseline |")  # s = .0816, t_{3, .975} = 3.182
    tex = (folder / "table.tex").read_text()
    assert r"odd \& <i> & 3 of 4 & 0.167 [$-$" in tex
    assert tex.splitlines()[1:4] == [r"\begin{tabular}{llllllll}", r"\toprule", HEAD]


def test_numbers_have_three_figures():
    values = (0.0, 0.12345, -12.345, 1234.5, 1e-5, 2.5e9, float("nan"))
    assert [number(value) for value in values] == ["0", "0.123", "−12.3", "1234", "1.00e−05", "2.50e+09", "–"]
    assert number(0.5, signed=True) == "+0.500"


def test_only_what_differs_is_listed(found):
    (line,) = differing(found)
    assert line == ("train.batch_size", [{"online": "8"}.get(arm, "4") for arm in found.arms])


def test_arms_look_different_without_colour():
    styles = looks([str(n) for n in range(11)])
    assert len({(look.marker, look.line) for look in styles.values()}) == 11


def test_the_verb(folder, tmp_path, capsys):
    main(["report", str(folder), "--out", str(tmp_path / "out"), "--baseline", "rpo", "--metric", "length"])
    printed = capsys.readouterr().out
    assert "exactly the same numbers with dpo" in printed
    assert (tmp_path / "out" / "report.html").exists()
    with pytest.raises(SystemExit):
        main(["report", str(tmp_path / "nowhere")])


def test_defaults_that_no_recipe_names_are_differences(tmp_path):
    made = study(tmp_path, {"a": [0.0, 0.1], "b": [1.0, 1.12]})
    for arm, beta in (("a", 0.1), ("b", 5.0)):
        for run in (made / "arms" / arm).iterdir():
            recipe = run / "recipe.yaml"
            recipe.write_text(recipe.read_text().replace("- beta: 0.1\n  name", "- name"))
            manifest = json.loads((run / "manifest.json").read_text())
            (run / "manifest.json").write_text(json.dumps(manifest | {"objectives": [{"name": "DPO", "beta": beta}]}))
    assert ("objective.beta", ["0.1", "5.0"]) in differing(compare([made]))


def test_of_a_study_the_verb_says_what_was_declared(tmp_path, capsys):
    """Question, baseline and metric are the study's; a metric that is chosen afterwards is called so; confounds are found."""
    made = study(tmp_path, {"dpo": [0.0, 0.1], "rpo": [1.0, 1.12]})
    finished_run(made / "arms/odd/seed-0", 0, 0.2, recipe={"train": {"batch_size": 8, "lr": 0.001}})
    arms = "arms: {dpo: {}, rpo: {}, odd: {}}"
    (made / "study.yaml").write_text(
        f"question: Which?\nrecipe: r.yaml\nbaseline: rpo\nmetric: length\nseeds: 2\n{arms}\n"
    )
    main(["report", str(made)])
    printed = " ".join(capsys.readouterr().out.split())
    assert "Against rpo, on length" in printed
    assert "odd: train.batch_size is 8, and 4 in rpo" in printed
    assert "exploratory" not in printed
    assert "<h1>Which?</h1>" in (made / "report.html").read_text()
    main(["report", str(made), "--metric", "gold", "--baseline", "dpo"])
    printed = " ".join(capsys.readouterr().out.split())
    assert "Against dpo, on gold" in printed
    assert "gold was chosen after the runs; the study declared length" in printed


def test_nobody_said_which_end_of_another_metric_is_good(html):
    primary, exploratory = html.split("Other metrics, exploratory")
    assert '<td class="better">better' in primary
    said = {cell.split()[0] for cell in re.findall(r"<td>([^<]+)</td></tr>", exploratory)}
    assert "higher" in said and not said & {"better", "worse"}
    assert ends("lower") == {"better": "lower", "worse": "higher"}


def test_a_terminals_table(found):
    console = Console(file=io.StringIO(), width=160)
    show(console, found)
    text = console.file.getvalue()
    assert "odd & <i>" in text
    assert "note: online: train.batch_size is 8" in text


@pytest.mark.parametrize("width", [50, 60, 75, 76, 160])
def test_no_terminal_is_too_narrow_for_numbers(found, width):
    console = Console(file=io.StringIO(), width=width)
    show(console, found)
    table = console.file.getvalue().partition(found.verdict[:12])[0]
    assert "…" not in table
    for row in found.primary.rows[1:]:
        for part in (spread(row.mean).split()[0], spread(row.difference.mean, signed=True).split()[0]):
            assert part in table, (part, table)


BROWSER = next(filter(None, map(shutil.which, ("chromium-headless-shell", "chromium", "google-chrome"))), None)


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="no Chromium: apt-get install chromium-headless-shell")
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 400])
def test_in_a_browser(written, width, scheme):
    """No complaint, no request but for the page, nothing wider than the window, every figure drawn, no text too small."""
    playwright = pytest.importorskip("playwright.sync_api", reason="pip install playwright")
    with playwright.sync_playwright() as p:
        browser = p.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        tab = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
        said: list[str] = []
        asked: list[str] = []
        tab.on("console", lambda message: said.append(message.text))
        tab.on("pageerror", lambda error: said.append(str(error)))
        tab.on("request", lambda request: asked.append(request.url))
        tab.goto(written.as_uri())
        figures = tab.evaluate(
            """[...document.querySelectorAll("figure svg")].map(svg => ({
                width: svg.getBoundingClientRect().width, paths: svg.querySelectorAll("path, use").length,
                text: Math.min(...[...svg.querySelectorAll("text")].map(t => t.getBoundingClientRect().height))}))"""
        )
        wide = tab.evaluate("document.documentElement.scrollWidth")
        browser.close()
    assert said == []
    assert asked == [written.as_uri()]
    assert wide <= width
    assert len(figures) == 6
    assert all(figure["width"] > 300 and figure["paths"] > 20 and figure["text"] >= 7 for figure in figures)
