"""A report over run folders that strangers made: what is in them is shown as text, and nothing is executed, obeyed or sent."""

import csv
import io
import json
import re
import shutil
from pathlib import Path

import pytest
from _folders import finished_run
from test_report import Outline

from prefopt.cli import main
from prefopt.runs.records import find_runs
from prefopt.study.report.text_tables import FORMULA, HEADINGS
from prefopt.support.errors import PrefoptError
from prefopt.support.terminal import HIDDEN

ESCAPES = "\x1b[2J\x1b]0;title\x07\x9b1m\u202etxt.exe\u2066\r\x08\x00"
ARMS = {
    "formula": '=HYPERLINK("http://127.0.0.1:9/","open")',
    "spaced formula": "  @SUM(1)",
    "full-width formula": "\uff1d1+1",
    "minus": "-2+3",
    "escapes": f"a{ESCAPES}b",
    "image": "![x](http://127.0.0.1:9/x.png)",
    "tags": "<script>alert(1)</script><img src=http://127.0.0.1:9/ onerror=x>",
    "latex": r"\input{/etc/hostname}%\write18{touch ran}",
    "columns": "a | b `c`",
    "lines": "a\n\n# title\nb",
    "math": r"$\frac{$",
    "markup": "[bold]x[/] [/] :bug:",
    "underscore": "_hidden",
    "other scripts": "日本語 שלום",
}
"""Names of arms; each is harmless where it is only text."""


@pytest.fixture(scope="module")
def strangers(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("strangers")
    (folder / "evil.py").write_text("import pathlib\npathlib.Path(__file__).with_name('ran').touch()\n")
    evil = {"name": f"{folder}/evil.py:Loss"}
    for number, name in enumerate(ARMS.values()):
        recipe = {"name": name, "objective": [evil], "note": "${env:PREFOPT_TEST_SECRET}", "base": "/etc/hostname"}
        run = finished_run(
            folder / f"run{number}", 0, -0.5 - number, recipe=recipe, samples=[name, ESCAPES, "\ud83d x"]
        )
        summary = json.loads((run / "summary.json").read_text())
        summary["after"] |= {"=1+1": 0.25, f"metric{ESCAPES}": 0.5}
        (run / "summary.json").write_text(json.dumps(summary))
    return folder


@pytest.fixture(scope="module")
def report(strangers) -> dict[str, str]:
    """The text of every file of the report, and what was printed."""
    patch = pytest.MonkeyPatch()
    patch.setenv("PREFOPT_TEST_SECRET", "not-to-be-read")
    printed = io.StringIO()
    for name in ("out", "err"):
        from prefopt.support.terminal import Terminal

        patch.setattr(f"prefopt.cli.consoles.{name}", Terminal(file=printed, width=100))
    main(["report", str(strangers), "--out", str(strangers / "report")])
    patch.undo()
    files = {file.name: file.read_text() for file in (strangers / "report").iterdir()}
    shutil.rmtree(strangers / "report")
    return files | {"terminal": printed.getvalue()}


def test_no_control_character_leaves_a_run_folder(report):
    written = {"report.html", "results.csv", "results.json", "table.md", "table.tex", "terminal"}
    assert set(report) == written | {"methods.md", "methods.tex", "references.bib"}
    for name, text in report.items():
        assert not HIDDEN.search(text), name
        if name == "references.bib":
            continue  # no arm is named there
        assert r"a\x1b[2J" in text.replace(r"\textbackslash{}", "\\").replace("\\\\", "\\"), name


def test_nothing_is_executed_and_no_secret_is_read(report, strangers):
    assert not (strangers / "ran").exists()
    assert all("not-to-be-read" not in text for text in report.values())
    assert "${env:PREFOPT_TEST_SECRET}" in report["report.html"]


def test_the_page_has_no_tags_of_theirs_and_sends_nothing(report):
    seen = Outline(report["report.html"])
    assert not {"img", "iframe", "link", "form"} & set(seen.tags)
    assert seen.tags.count("script") == 1
    assert all(
        value.startswith(("#", "./")) for name, value in seen.attributes if name in ("src", "href", "xlink:href")
    )
    assert not [name for name, _ in seen.attributes if name.startswith("on")]
    assert "default-src 'none'" in report["report.html"]
    for name in ("tags", "latex", "math", "markup", "underscore", "other scripts"):
        assert ARMS[name] in seen.words, name


def test_no_cell_of_the_spreadsheet_is_a_formula_and_numbers_stay_numbers(report):
    rows = list(csv.reader(io.StringIO(report["results.csv"])))
    head, arms = rows[0], {row[0] for row in rows[1:]}
    for cell in (*head, *arms):
        assert not cell.lstrip(" ").startswith(FORMULA), cell
    assert {f"'{ARMS['formula']}", f"'{ARMS['minus']}", f"'{ARMS['spaced formula']}"} <= arms and "'=1+1" in head
    golds = {float(row[head.index("gold")]) for row in rows[1:]}
    assert golds == {-0.5 - number for number in range(len(ARMS))}


def test_the_tables_are_text(report):
    tex, md = report["table.tex"].replace(r"\allowbreak{}", "").replace(r"\-", ""), report["table.md"]
    assert r"\textbackslash{}input\{/etc/hostname\}\%" in tex and not re.search(r"(?<!\\)\\(input|write)", tex)
    assert len([line for line in tex.splitlines() if line.endswith(r"\\")]) == len(ARMS) + 1
    assert json.loads(report["results.json"])["version"] == 1
    table = [line for line in md.splitlines() if line.startswith("| ")]
    assert len(table) == len(ARMS) + 1
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in table} == {len(HEADINGS) + 1}
    assert "![x\\](http" in md and "![x](" not in md and "<script" not in md.replace(r"\<", "")


BOMB = "a0: &a0 [x, x]\n" + "".join(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]\n" for n in range(1, 40))


@pytest.mark.parametrize(
    "recipe",
    ["name: !!python/object/apply:os.system ['touch {folder}/ran']\n", BOMB, "name: " + "[" * 5000, "a: &a [*a]\n"],
    ids=["object", "bomb", "nested", "itself"],
)
def test_yaml_that_makes_objects_or_has_no_end_is_refused(tmp_path, recipe):
    run = finished_run(tmp_path / "run", 0, 0.5)
    (run / "recipe.yaml").write_text(recipe.replace("{folder}", str(tmp_path)))
    with pytest.raises(PrefoptError, match=r"recipe\.yaml is damaged"):
        find_runs([run])
    assert not (tmp_path / "ran").exists()
