"""docs/first-hour.md does what it says: a fresh person's hour, taken from the page, typed, and killed once in a shell."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from _forked import typed

import prefopt

PAGE = (Path(__file__).parents[2] / "docs" / "first-hour.md").read_text()
TEX = ("pdflatex", "bibtex")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```(?:{language})\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


def files() -> dict[str, str]:
    named = [(re.match(r"[#%] (\S+\.\w+)\n", block), block) for block in blocks("python|yaml|latex")]
    assert all(match for match, _ in named), "a file block does not begin with its name"
    return {match[1]: block for match, block in named if match}


def commands() -> list[str]:
    lines = [line.partition("  #")[0].strip() for block in blocks("bash") for line in block.splitlines()]
    return [line for line in lines if line and not line.startswith(("pip", "mkdir", "cd "))]


def test_the_page_is_whole():
    assert set(files()) == {
        *("rows.py", "metrics.py", "own.yaml", "loss.py", "study.yaml", "paper.tex", "read.py"),
    }
    assert commands().count("prefopt study study.yaml") == 2
    for name in re.findall(r"\]\((\w[\w-]*\.md)\)", PAGE):
        assert (Path(__file__).parents[2] / "docs" / name).is_file(), name


@pytest.mark.slow
def test_the_hour(tmp_path: Path) -> None:
    for name, text in files().items():
        (tmp_path / name).write_text(text)
    home = Path(prefopt.__file__).parent.parent
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "PYTHONPATH": str(home), "OMP_NUM_THREADS": "1"}
    killed = False
    for line in commands():
        if line.startswith(TEX) and not all(map(shutil.which, TEX)):
            continue
        if line == "prefopt study study.yaml" and not killed:
            kill_after_its_first_run(tmp_path, line, environment)
            killed = True
            continue
        printed = typed(line, tmp_path, environment)
        if line == "prefopt study study.yaml":
            assert "of 6 runs are finished already" in printed
        if line == "prefopt check loss.py:SquaredMargin":
            assert "SquaredMargin keeps the contract" in printed
        if line == "python read.py":
            assert "report of the film" in printed
    came_out(tmp_path)


def kill_after_its_first_run(folder: Path, line: str, environment: dict[str, str]) -> None:
    """SIGKILL, which nothing can prepare for."""
    process = subprocess.Popen(["bash", "-c", f"exec {line}"], cwd=folder, env=environment, start_new_session=True)
    limit = time.monotonic() + 300
    try:
        while not list(folder.glob("runs/margin/arms/*/*/summary.json")):
            assert process.poll() is None and time.monotonic() < limit, "no run of the study came to its end"
            time.sleep(0.05)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert len(list(folder.glob("runs/margin/arms/*/*/summary.json"))) < 6


def came_out(folder: Path) -> None:
    """Table, figures, methods and references, and the paper of two pages where there is a TeX."""
    made = folder / "runs" / "margin"
    table = (made / "table.tex").read_text()
    assert all(part in table for part in ("SquaredMargin", "praise", "brevity", r"\label{tab:praise}"))
    assert (
        "SquaredMargin" in (made / "methods.tex").read_text() and "2305.18290" in (made / "references.bib").read_text()
    )
    assert {".pdf", ".svg", ".png"} <= {file.suffix for file in (made / "figures").glob("learning.*")}
    if all(map(shutil.which, TEX)):
        log = (folder / "paper.log").read_text(errors="replace")
        assert re.search(r"Output written on paper\.pdf \(2 pages", log), log[-500:]
        assert "undefined" not in log and "Overfull" not in log
    assert (folder / "exported" / "README.md").is_file()
