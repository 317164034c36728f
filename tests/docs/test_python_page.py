"""docs/python.md does what it says: its session runs, its plug-ins serve by path and as objects, wrong ones are explained."""

import os
import re
from pathlib import Path
from typing import Any

import matplotlib
import pytest
from _tiny import tiny_model
from rich.console import Console

import prefopt
from prefopt import PrefoptError
from prefopt.support.plugins import load_object

PAGE = (Path(__file__).parents[2] / "docs" / "python.md").read_text()
BLOCKS = re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
FILES = {match[1]: block for block in BLOCKS if (match := re.match(r"# (\w+\.py)\n", block))}
QUIET = Console(quiet=True)

matplotlib.use("Agg")


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The reader's folder, with every plug-in of the page in it."""
    for name, text in FILES.items():
        (tmp_path / name).write_text(text)
    monkeypatch.chdir(tmp_path)
    tiny_model(tmp_path / "lm")
    return tmp_path


def settings(**more: Any) -> dict[str, Any]:
    return {
        "policy": {"model": "lm"},
        "source": {"data": "data.py:films"},
        "objective": "DPO",
        "train": {"steps": 2, "batch_size": 8, "lr": 1e-3, "threads": 1},
        "evaluate": {"prompts": 3, "sampling": {"max_tokens": 4}},
    } | more


def test_the_page_has_a_plug_in_of_each_kind_in_at_most_15_lines() -> None:
    assert set(FILES) == {
        f"{kind}.py" for kind in ["loss", "feedback", "metric", "environment", "callback", "sampler", "data"]
    }
    assert {name: text.count("\n") for name, text in FILES.items() if text.count("\n") - 1 > 15} == {}


def test_the_session_runs_in_at_most_12_lines(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    session = BLOCKS[0]
    assert len([line for line in session.splitlines() if line.strip()]) <= 12
    assert session.count('"steps": 20') == 1
    names: dict[str, Any] = {}
    exec(session.replace('"steps": 20', '"steps": 2, "threads": 1'), names)
    assert list(names["history"].index) == [0, 1, 2] and os.path.getsize("loss.png") > 1000
    assert capsys.readouterr().out.strip().startswith("the film was")


def test_plug_ins_serve_by_path_and_as_objects(home: Path) -> None:
    paths: dict[str, Any] = {
        "objective": "loss.py:Hinge",
        "metrics": {"begins": "metric.py:begins"},
        "callbacks": "callback.py:until",
        "data": "data.py:films",
    }
    objects = {key: load_object(value) for key, value in paths.items() if isinstance(value, str)}
    objects["metrics"] = {"begins": load_object("metric.py:begins")}
    by_path = prefopt.run(settings(), **paths, console=QUIET)
    as_objects = prefopt.run(settings(), **objects, console=QUIET)
    columns = ["loss", "grad_norm", "test/accuracy", "test/begins"]
    assert by_path.metrics[columns].equals(as_objects.metrics[columns])
    assert by_path.metrics["loss"][1] == pytest.approx(1.0)  # the hinge at the reference


@pytest.mark.parametrize("scores", ["feedback.py:short", "environment.py:Exact"])
def test_plug_ins_of_rollouts_serve_by_path_and_as_objects(home: Path, scores: str) -> None:
    argument = scores.partition(".")[0]
    losses = []
    for given in (lambda path: path, load_object):
        rollouts = {"completions": 2, "sampling": {"max_tokens": 3}, "sampler": given("sampler.py:Cold")}
        source = {"data": "data.py:films", "rollouts": rollouts}
        more: dict[str, Any] = {argument: given(scores)}
        result = prefopt.run(settings(source=source, objective="RLOO"), **more, console=QUIET)
        losses.append(result.metrics[["loss", "rollouts/reward"]].dropna())
    assert losses[0].equals(losses[1]) and len(losses[0]) == 2


@pytest.mark.parametrize(
    ("name", "whole", "broken", "message"),
    [
        ("loss.py", "    def loss(", "    def lose(", "Hinge has no method 'loss'; an objective has"),
        ("loss.py", "completions=2, ordered=True, reference=True", "completion=2", "fails to import: TypeError"),
        ("loss.py", "    needs =", "    wants =", "declares no needs; write for example"),
        ("feedback.py", "prompts, completions, rows", "completions", r"is called with \(prompts, completions, rows\), and its"),
        ("feedback.py", "len(text.split()) for text in texts", "len(texts)", r"scores of shape \[8, 1\] for 8 prompts × 2"),
        ("metric.py", "prompts, completions, rows", "text", r"evaluate\.metrics\.begins: .*is called with \(prompts"),
        ("environment.py", "def step", "def stop", "has no method 'step'; an environment has reset"),
        ("environment.py", "Turn(reward=float(self.answer in text), done=True)", "1.0", r"returned 1\.0; it returns prefopt\.Turn"),
        ("callback.py", "def until(step)", "def until(step, more)", r"is called with \(step\), and its parameters are"),
        ("sampler.py", "settings, seeds):", "settings):", r"is called with \(model, prompt_ids, completions, settings, seeds\)"),
        ("sampler.py", "(self, accelerator)", "(self, acelerator)", "needs 'acelerator'; beside fields of the recipe, it can ask"),
        ("data.py", "yield {", "yield str({", r"row 1: a row must be an object with column names, not str"),
        ("data.py", "number=40", "number", r"missing a required argument: 'number'; its arguments are \(number\)"),
    ],
)  # fmt: skip
def test_a_wrong_shape_is_explained(home: Path, name: str, whole: str, broken: str, message: str) -> None:
    text = FILES[name].replace(whole, broken)
    assert text != FILES[name]
    if name == "data.py" and broken.startswith("yield"):
        text = text.replace('"great"}', '"great"})')
    (home / name).write_text(text)
    rollouts: dict[str, Any] = {"completions": 2, "sampling": {"max_tokens": 3}, "sampler": "sampler.py:Cold"}
    online = {"source": {"data": "data.py:films", "rollouts": rollouts}, "objective": "RLOO"}
    rolled = name in ("feedback.py", "environment.py", "sampler.py")
    given: dict[str, Any] = {
        "callback.py": {"callbacks": "callback.py:until"},
        "loss.py": {"objective": "loss.py:Hinge"},
    }.get(name, {})
    if name == "metric.py":
        given = {"metrics": {"begins": "metric.py:begins"}}
    if name == "environment.py":
        given = {"environment": "environment.py:Exact"}
    elif rolled:
        given = {"feedback": "feedback.py:short"}
    with pytest.raises(PrefoptError, match=message):
        prefopt.run(settings(**(online if rolled else {})), **given, console=QUIET)
