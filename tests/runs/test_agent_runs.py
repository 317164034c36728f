"""Runs of agents: whole ones, by one process and by two, with environments that misbehave."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from _kills import prepare
from rich.console import Console

from prefopt import load_recipe, run
from prefopt.runs.folder import RunFolder
from prefopt.runs.inspecting import evaluate, sample
from prefopt.runs.label import label, load_label_recipe

QUIET = Console(quiet=True)


@pytest.fixture(scope="module")
def home(tmp_path_factory: Any) -> Path:
    return prepare(tmp_path_factory.mktemp("agents"))


def untimed(folder: Path) -> list[dict[str, Any]]:
    return [{k: v for k, v in line.items() if k != "seconds"} for line in RunFolder(folder).history()]


def test_a_run_learns_from_episodes_and_shows_them(home: Path, tmp_path: Path) -> None:
    recipe = load_recipe(home / "agent.json", ["train.steps=3", "track.rollouts=3", "evaluate.completions=2"])
    result = run(recipe, folder=tmp_path / "run")
    of_step = next(line for line in untimed(tmp_path / "run") if line["step"] == 2)
    assert of_step["environment/asked"] > 0 and 1 <= of_step["environment/turns"] <= 3
    assert {"return", "turns", "asked"} <= set(result.after) and "failed" not in result.after
    kept = [json.loads(line) for line in (tmp_path / "run" / "rollouts" / "step-2.jsonl").read_text().splitlines()]
    assert len(kept) == 3
    for one in kept:
        assert one["score"] is None or one["score"] == pytest.approx(sum(one["turn_rewards"]))
        assert one["completion"][0]["role"] == "assistant" and "messages" not in one
    evaluation = RunFolder(tmp_path / "run").last_evaluation("test")
    assert evaluation is not None
    for one in evaluation.samples:
        assert one["return"] == (None if one["stop"] == "error" else pytest.approx(sum(one["turn_rewards"])))


@pytest.mark.slow
def test_two_processes_write_the_episodes_of_one(home: Path, tmp_path: Path) -> None:
    overrides = ["train.steps=3", "policy.dtype=float64"]
    one = run(load_recipe(home / "agent.json", overrides), folder=tmp_path / "one").folder
    two = tmp_path / "two"
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", "prefopt.cli"]
    done = subprocess.run(
        [sys.executable, *launch, "run", str(home / "agent.json"), *overrides, "--out", str(two)],
        env=os.environ | {"PYTHONPATH": ":".join(sys.path)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    for a, b in zip(untimed(one), untimed(two), strict=True):
        assert a.keys() == b.keys() and len(a) > 5
        known = {name for name, value in a.items() if value is not None and name != "padding"}
        assert known == {name for name, value in b.items() if value is not None and name != "padding"}
        assert [a[name] for name in known] == pytest.approx([b[name] for name in known], rel=1e-6, abs=1e-6)


def test_an_environment_that_is_none_stops_a_run_before_a_model_is_loaded(home: Path, tmp_path: Path) -> None:
    (tmp_path / "env.py").write_text(
        "class E:\n    def reset(self, row, seed):\n        return 3\n\n    def step(self, text):\n        pass\n"
    )
    from prefopt import PrefoptError

    recipe = load_recipe(home / "agent.json", [f"source.rollouts.environment.name={tmp_path}/env.py:E"])
    with pytest.raises(PrefoptError, match=r"reset returned 3; it returns a text, messages, or None"):
        run(recipe, folder=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_template_that_cannot_hold_episodes_is_refused_before_a_model_is_loaded(
    home: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    from prefopt import PrefoptError
    from prefopt.policy.loading import load_tokenizer
    from prefopt.runs.dry_run import dry_run

    model, rows = tmp_path / "lm", tmp_path / "rows.jsonl"
    asked = [{"prompt": [{"role": "user", "content": f"w{i}"}]} for i in range(30)]
    rows.write_text("".join(json.dumps(row) + "\n" for row in asked))
    shutil.copytree(home / "lm", model)
    (tmp_path / "env.py").write_text(
        "from prefopt import Turn\nclass E:\n    def reset(self, row, seed):\n        pass\n\n"
        "    def step(self, text, *, truncated):\n        return Turn('w1')\n"
    )
    own = {"policy.model": model, "source.data": rows, "source.rollouts.environment.name": f"{tmp_path}/env.py:E"}
    settings = load_recipe(home / "agent.json", [f"{key}={value}" for key, value in own.items()])
    tokenizer = load_tokenizer(settings.policy)

    def warnings(content: str) -> list[str]:
        tokenizer.chat_template = f"{{% for m in messages %}}{content} . {{% endfor %}}"
        tokenizer.save_pretrained(model)
        return [one for one in dry_run(settings).plan.warnings if "chat template" in one]

    assert warnings("{{ m.content }}") == []
    assert "environment: " in warnings("{{ m.content | trim }}")[0]
    with pytest.raises(PrefoptError, match="does not keep turns that a user answers, so that no episode can have two"):
        warnings("{{ m.content if loop.last }}")
    monkeypatch.setattr("prefopt.runs.preparing.load_policy", None)
    monkeypatch.setattr("prefopt.runs.label.completions.load_policy", None)
    labelling = {
        "policy": {"model": str(model)},
        "source": {"data": str(rows)},
        "samples": {"completions": 2, "environment": {"name": f"{tmp_path}/env.py:E"}},
        "feedback": "EnvironmentReward",
    }
    (tmp_path / "label.json").write_text(json.dumps(labelling))
    for name, verb in (
        ("source.rollouts", lambda: evaluate(settings, QUIET)),
        ("source.rollouts", lambda: sample(settings, None, 1, 1)),
        ("source.rollouts", lambda: sample(settings, ["w3"], 1, 1)),
        ("samples", lambda: label(load_label_recipe(tmp_path / "label.json"), tmp_path / "labels", QUIET)),
    ):
        with pytest.raises(PrefoptError, match=rf"{name}\.environment: .* does not keep turns that a user answers"):
            verb()


def test_a_metric_that_is_added_sees_what_the_run_saw(home: Path, tmp_path: Path) -> None:
    (tmp_path / "m.py").write_text(
        "def spoken(prompts, completions, rows):\n"
        "    return [[float(len(turns)) for turns in row['messages']] for row in rows]\n"
        "def paid(prompts, completions, rows):\n"
        "    return [[sum(rewards) for rewards in row['turn_rewards']] for row in rows]\n"
    )
    metrics = [f"evaluate.metrics.{name}={tmp_path}/m.py:{name}" for name in ("spoken", "paid")]
    folder = run(load_recipe(home / "agent.json", ["train.steps=2", *metrics]), folder=tmp_path / "run").folder
    later = [f"evaluate.metrics.{name}_later={tmp_path}/m.py:{name}" for name in ("spoken", "paid")]
    command = [sys.executable, "-m", "prefopt.cli", "evaluate", str(folder), *later, "--add"]
    done = subprocess.run(
        command, env=os.environ | {"PYTHONPATH": ":".join(sys.path)}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    for name in ("spoken", "paid"):
        kept = json.loads((folder / "measured" / f"{name}_later.json").read_text())
        own = RunFolder(folder).last_evaluation("test")
        assert own is not None
        assert [one[f"{name}_later"] for one in kept["samples"]] == [one[name] for one in own.samples]
