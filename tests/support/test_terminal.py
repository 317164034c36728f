"""Control characters are shown and not obeyed, wherever text is printed; all other text is printed as it is."""

import io
import re
import subprocess
import sys
from pathlib import Path

import pytest
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from prefopt.support.terminal import Terminal, one_line, visible

CONTROLS = [
    *(chr(n) for n in range(0x20) if chr(n) not in "\n\t"),
    *map(chr, range(0x7F, 0xA0)),
    *"\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069",
    "\ud83d",
]
PACKAGE = Path(__file__).parents[2] / "prefopt"


def printed(renderable, **options) -> str:
    file = io.StringIO()
    Terminal(file=file, width=200, **options).print(renderable)
    return file.getvalue()


def table_of(text: str) -> Table:
    table = Table(title=text)
    table.add_column(text)
    table.add_row(Text(text))
    return table


@pytest.mark.parametrize(
    "wrapped",
    [str, Text, lambda text: Text(text, style="bold"), lambda text: Padding(Text(text), 1), table_of, lambda t: [t]],
    ids=["str", "Text", "bold", "Padding", "Table", "list"],
)
def test_no_control_character_reaches_the_terminal(wrapped):
    out = printed(wrapped("a" + "b".join(CONTROLS) + "c"))
    assert not set(CONTROLS) & set(out)
    assert r"\x1b" in out and r"\u202e" in out


def test_every_control_character_is_written_as_python_would_write_it():
    for character in CONTROLS:
        expected = r"\x0d" if character == "\r" else repr(character)[1:-1]
        assert visible(f"<{character}>") == f"<{expected}>"
    assert one_line("a\n\tb\x07") == r"a\n\tb\x07"


def test_styles_are_kept_beside_what_is_made_visible():
    text = Text.assemble(("red\x1b[2J", "red"), "plain")
    out = printed(text, force_terminal=True, color_system="standard", no_color=False)
    assert out.replace("\x1b[0m\x1b[31m", "") == "\x1b[31mred\\x1b[2J\x1b[0mplain\n"


@pytest.mark.parametrize(
    "text",
    [
        "[bold]x[/] [/] [red",
        ":bug: :smile:",
        "שלום עולם",
        "مرحبا",
        "日本語 한국어",
        "👩‍👩‍👧‍👦 é ñ",
        "a\tb",
        "x  y",
        "⟦w⟧ → −1 ± ½",
    ],
)
def test_other_text_is_printed_as_it_is(text):
    assert printed(text).rstrip("\n") == text.expandtabs(8)


def test_warnings_of_the_log_go_the_same_way():
    """In a process of its own: pytest's log would be changed for all tests after it."""
    code = (
        "import logging; from prefopt.support.logs import quiet_libraries; quiet_libraries();"
        r"logging.getLogger('any').warning('%s', 'the server says \x1b]0;title\x07 [bold]')"
    )
    err = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120).stderr
    assert r"the server says \x1b]0;title" in err and " [bold]" in err and "\x1b" not in err and "\x07" not in err


@pytest.mark.parametrize("file", sorted(PACKAGE.rglob("*.py")), ids=lambda f: str(f.relative_to(PACKAGE)))
def test_all_printing_goes_through_it(file):
    """`prefopt.testbeds.pocket` builds what ships, and prints its own numbers."""
    if file.name == "terminal.py" or "pocket" in file.parts:
        return
    text = file.read_text(encoding="utf-8")
    assert not re.search(r"(?<![\w.])(print|Console)\(|sys\.std(out|err)\.write|from rich import print", text)


def test_a_reader_that_leaves_early_ends_nothing():
    code = "from prefopt.cli import main; main(['objectives'])"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    process.stdout.close()
    with process.stderr:
        assert process.stderr.read() == "" and process.wait(timeout=120) == 0
