"""docs/tutorial.md does what it says: its files and commands are taken from the page and run, on less data and fewer steps."""

import io
import os
import re
import runpy
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas
import pytest
from _folders import study

import prefopt
from prefopt.cli import main
from prefopt.study.comparison.compare import compare
from prefopt.study.report import show
from prefopt.support.terminal import Terminal

REPOSITORY = Path(__file__).parents[2]
PAGE = (REPOSITORY / "docs" / "tutorial.md").read_text()

SMALLER = {
    "n: 1500": "n: 80",
    "n: 256": "n: 24",
    "steps: 40": "steps: 2",
    "batch_size: 48, micro_batch_size: 24": "batch_size: 8, micro_batch_size: 4",
    "every: 20": "every: 1",
    "prompts: 128": "prompts: 8",
    "rows: 128": "rows: 8",
    "seeds: 5": "seeds: 2",
    "trials: 3": "trials: 1",
    "objective: DPO, tune: {objective.beta: [0.03, 0.1, 0.3]}": "objective: DPO, tune: {objective.beta: [0.1]}",
    "tune: {objective.beta: [0.36, 1.2, 3.6]}": "tune: {objective.beta: [1.2]}",
    'LevelDPO", tune: {objective.beta: [0.03, 0.1, 0.3]}': 'LevelDPO", tune: {objective.beta: [0.1]}',
}
"""All that the tests change in the page's files; each stands there once."""

ELSEWHERE = ("wandb sync", "pdflatex", "bibtex")
"""Commands that need a login, or a TeX that few machines of tests have."""


def blocks(language: str = r"\w+") -> list[str]:
    return re.findall(rf"^```(?:{language})\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


def files() -> dict[str, str]:
    """The page's files: blocks whose first line is a comment with nothing but a name."""
    named = [(re.match(r"[#%] (\S+\.\w+)\n", block), block) for block in blocks("python|yaml|latex")]
    assert all(match for match, _ in named), "a file block does not begin with its name"
    return {match[1]: block for match, block in named if match}


def commands() -> list[str]:
    """What a person types, in order, without the remarks behind it."""
    lines = [line.partition("  #")[0].strip() for block in blocks("bash") for line in block.splitlines()]
    return [line for line in lines if line and not line.startswith(("pip", "mkdir", "cd", *ELSEWHERE))]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The reader's folder, with every file of the page in it."""
    for name, text in files().items():
        for large, small in SMALLER.items():
            text = text.replace(large, small)
        (tmp_path / name).write_text(text)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def typed(line: str) -> None:
    """A command, in this process."""
    program, *arguments = shlex.split(line)
    if program == "python":
        runpy.run_path(arguments[0])
    elif program == "prefopt":
        main(arguments)
    else:
        raise AssertionError(f"the test does not know how to run: {line}")


def test_page_names_its_files_and_the_substitutions_fit() -> None:
    assert set(files()) == {"level.py", "check_level.py", "pairs.yaml", "study.yaml", "paper.tex", "read.py"}
    every = "".join(files().values())
    assert {large: every.count(large) for large in SMALLER} == dict.fromkeys(SMALLER, 1)
    assert [line for line in commands() if line.startswith("prefopt study")] == [
        "prefopt study study.yaml --jobs 2 --dry-run",
        "prefopt study study.yaml --jobs 2",
        "prefopt study study.yaml --jobs 2",
    ]


def test_every_command_of_the_page_runs(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In one process, without W&B and a rehearsal for the time, which take longest; the slow test has them."""
    monkeypatch.setenv("WANDB_MODE", "disabled")
    printed = {}
    for line in commands():
        typed(line.replace("--jobs 2", "--jobs 1").replace("--jobs 1 --dry-run", "--dry-run --untimed"))
        printed.setdefault(line, capsys.readouterr().out)
    said = printed["prefopt check level.py:LevelDPO"]
    assert said in blocks("text"), "the page shows another output of `prefopt check`"
    assert "3 trials of tuning" in printed["prefopt study study.yaml --jobs 2 --dry-run"]
    assert re.search(r"Against DPO, on gold: .*LevelDPO", printed["prefopt study study.yaml --jobs 2"], re.DOTALL)
    assert "LevelDPO" in printed["python read.py"]
    finished(folder)


def finished(folder: Path) -> None:
    """What the page says is there at its end."""
    made = folder / "runs" / "level"
    assert {"report.html", "table.tex", "table.md", "results.csv", "tuning.json"} <= {f.name for f in made.iterdir()}
    runs = pandas.read_csv(made / "results.csv")
    assert sorted(runs["arm"].unique()) == ["DPO", "LNDPO", "LevelDPO"] and len(runs) == 6
    assert (runs["state"] == "finished").all() and runs["gold"].notna().all() and runs["gold_at_kl"].notna().any()
    for part in ("objective.beta", "level.py:LevelDPO", "matched KL"):
        assert part in (made / "report.html").read_text() + (made / "tuning.json").read_text()
    compiles(folder)


def compiles(folder: Path) -> None:
    """The paper, by pdflatex where there is one; the table by its form anywhere."""
    table = (folder / "runs" / "level" / "table.tex").read_text()
    body = [line for line in table.splitlines() if not line.startswith("%")]
    (columns,) = re.findall(r"\\begin\{tabular\}\{@\{\}(lc+)@\{\}\}", table)
    rows = [line for line in body if line.endswith(r" \\")]
    assert len(rows) == 4 and body[-1] == r"\end{table}"
    for row in rows:
        assert len(re.split(r"(?<!\\)&", row)) == len(columns), row
        assert row.isascii() and row.count("$") % 2 == 0, row
    paper = (folder / "paper.tex").read_text()
    assert r"\input{runs/level/table.tex}" in paper and r"\usepackage{booktabs}" in paper
    if shutil.which("pdflatex"):
        line = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "paper.tex"]
        made = subprocess.run(line, cwd=folder, capture_output=True, text=True)
        assert made.returncode == 0 and (folder / "paper.pdf").exists(), made.stdout[-2000:]


@pytest.mark.parametrize(
    ("line", "name", "whole", "broken"),
    [
        ("prefopt check level.py:LevelDPO", "level.py", "self.beta * level", "self.beta * levels"),
        ("prefopt check level.py:LevelDPO", "level.py", "** self.alpha", "** self.alpha / length.mean()"),
        ("python check_level.py", "level.py", "** self.alpha", "** (1 - self.alpha)"),
        ("prefopt run pairs.yaml objective=level.py:LevelDPO --dry-run", "pairs.yaml", "max_prompt_", "max_prompts_"),
        ("prefopt study study.yaml --jobs 2 --dry-run", "study.yaml", "baseline: DPO", "baseline: PPO"),
    ],
)
def test_a_broken_file_is_found(folder: Path, line: str, name: str, whole: str, broken: str) -> None:
    """That what the page types can fail."""
    assert line in commands()
    text = (folder / name).read_text()
    assert whole in text
    (folder / name).write_text(text.replace(whole, broken))
    with pytest.raises((SystemExit, AssertionError)):
        typed(line)


@pytest.mark.slow
def test_studies_of_the_page_as_they_are_typed_with_ctrl_c_in_between(folder: Path) -> None:
    """In a shell, two processes, W&B offline; the first study is interrupted after its first run.

    Studies alone, for which the processes are: the quick test has the other commands.
    """
    home = Path(prefopt.__file__).parent.parent
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "PYTHONPATH": str(home)}
    first = True
    for line in (line for line in commands() if line.startswith("prefopt study")):
        if line == "prefopt study study.yaml --jobs 2" and first:
            first = False
            interrupted(folder, line, environment)
            continue
        done = subprocess.run(["bash", "-c", line], env=environment, capture_output=True, text=True, timeout=240)
        assert done.returncode == 0, (line, done.stderr[-2000:])
        if line == "prefopt study study.yaml --jobs 2":
            assert "runs are finished already" in done.stdout
    finished(folder)
    groups = list((folder / "runs" / "level").glob("**/wandb/offline-run-*"))
    assert len(groups) == 6 + 1  # the arms' runs, and the comparison; trials of tuning are not logged


def interrupted(folder: Path, line: str, environment: dict[str, str]) -> None:
    """Start a command, and press Ctrl-C when its first run has ended."""
    process = subprocess.Popen(
        ["bash", "-c", f"exec {line}"],
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # tests in the background ignore it
    )
    limit = time.monotonic() + 120
    try:
        while not list(folder.glob("runs/level/tuning/**/summary.json")):
            assert process.poll() is None and time.monotonic() < limit, "no run of the study came to its end"
            time.sleep(0.1)
        os.killpg(process.pid, signal.SIGINT)
        _, said = process.communicate(timeout=60)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 130 and "the same command goes on" in said


def test_the_page_shows_what_a_study_of_its_numbers_prints_today(tmp_path: Path) -> None:
    """The runs have the gold rewards of the page's table of seeds, in three decimals: so numbers are masked, and words are not."""
    (seeds,) = [block for block in blocks("text") if block.startswith("arm     DPO")]
    rows = [line.split() for line in seeds.splitlines() if re.match(r"\d ", line)]
    golds = {arm: [float(row[n]) for row in rows] for n, arm in enumerate(("DPO", "LNDPO", "LevelDPO"), 1)}
    console = Terminal(file=io.StringIO(), width=100)
    show(console, compare([study(tmp_path, golds)], baseline="DPO"))
    (shown,) = [block for block in blocks("text") if "Against DPO, on gold" in block]
    table = shown[shown.index("gold, test rows") : shown.index("note: ")]
    assert masked(table) == masked(console.file.getvalue().partition("note: ")[0])


def masked(text: str) -> str:
    """Words, with # for each number."""
    return re.sub(r"[+−]?\d[\d.]*", "#", " ".join(text.split()))
