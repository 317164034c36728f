"""docs/agents.md does what its first section says: from a function to a policy that calls it."""

import json
import os
import re
import sys
from pathlib import Path

import pytest
from _forked import typed

import prefopt
from prefopt.environments.calls import Call, calls_in

PAGE = (Path(__file__).parents[2] / "docs" / "agents.md").read_text()


SMALLER = {
    "steps: 250, batch_size: 64": "steps: 320, batch_size: 32",
    "steps: 40, batch_size: 16": "steps: 24, batch_size: 16",
    "evaluate: {completions: 8": "evaluate: {completions: 4",
}
"""All that the test changes in the page's files; each stands there once."""


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```(?:{language})\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


def files() -> dict[str, str]:
    """By its name, which is its first line, every file of the page."""
    return {re.findall(r"\A# (\S+)\n", block)[0]: block for block in blocks("python|yaml")}


def commands() -> list[str]:
    lines = [line.partition("  #")[0].strip() for block in blocks("bash") for line in block.splitlines()]
    return [line for line in lines if not line.startswith(("pip", "mkdir", "cd "))]


def environment() -> dict[str, str]:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    home = str(Path(prefopt.__file__).parent.parent)
    return {**os.environ, "PATH": path, "PYTHONPATH": home, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The reader's, with every file of the page in it, and shorter training."""
    for name, text in files().items():
        for large, small in SMALLER.items():
            text = text.replace(large, small)
        (tmp_path / name).write_text(text)
    return tmp_path


def test_the_section_is_whole() -> None:
    assert set(files()) == {"tools.py", "rows.py", "model.py", "imitate.yaml", "agent.yaml", "walk.py", "walk.yaml"}
    every = "".join(files().values())
    assert {large: every.count(large) for large in SMALLER} == dict.fromkeys(SMALLER, 1)
    assert [line.partition(" --")[0] for line in commands()] == [
        *("python rows.py", "python model.py", "prefopt run imitate.yaml"),
        *("prefopt run agent.yaml", "prefopt run agent.yaml", "prefopt sample runs/agent"),
        *("prefopt run walk.yaml", "prefopt sample runs/walk"),
    ]


@pytest.mark.slow
def test_a_function_becomes_a_tool_that_the_policy_calls(folder: Path) -> None:
    printed = {line: typed(line, folder, environment()) for line in commands()}
    tokenizer_keeps_every_demonstration(folder)
    summary = json.loads((folder / "runs" / "agent" / "summary.json").read_text())
    before, after, change = (summary[part] for part in ("before", "after", "change"))
    for name in ("return", "calls"):  # the intervals do not meet
        assert after[name]["low"] > before[name]["high"] and change[name]["low"] > 0, (name, before, after)
    table, _, walked, walk = blocks("text")
    said = words(printed["prefopt run agent.yaml --out runs/agent"])
    assert all(words(line) in said for line in table.splitlines())
    assert all(part in printed["prefopt sample runs/agent --number 2"] for part in ("<tool_call>", "  tool  "))
    said = words(printed["prefopt run walk.yaml --out runs/walk"])
    assert all(words(line) in said for line in walked.splitlines())
    assert json.loads((folder / "runs" / "walk" / "summary.json").read_text())["after"]["return"]["low"] > 0.7
    assert printed["prefopt sample runs/walk --number 1"].split()[:4] == walk.split()[:4] == ["lake", "a2", "task", "1"]


def words(text: str) -> str:
    """Words, with # for each number."""
    return re.sub(r"[+\-−]?\d[\d.]*", "#", " ".join(text.split()))


def tokenizer_keeps_every_demonstration(folder: Path) -> None:
    """The JSON of calls comes back from its tokens as it was, and is read as the call that it is."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder / "untrained")
    called = 0
    for line in (folder / "demonstrations.jsonl").read_text().splitlines():
        first = json.loads(line)["completion"][0]["content"]
        back = tokenizer.decode(tokenizer(first)["input_ids"])
        assert back == first
        called += any(isinstance(call, Call) and call.name == "capital" for call in calls_in(back, tokenizer))
    assert 600 < called < 900
