"""Ordinary states of learning end no run: a task that is solved or out of reach, a batch without verdicts."""

import io
import json
import shutil
from pathlib import Path

import pytest
from _tiny import tiny_model
from rich.console import Console

import prefopt
from prefopt import PrefoptError, load_recipe
from prefopt.policy import load_policy
from prefopt.runs.folder import RunFolder
from prefopt.runs.run import run
from prefopt.support.fingerprints import fingerprint_weights

RULES = """
calls = 0

def solved_after_two(prompts, completions, rows):
    global calls
    calls += 1
    if calls > 2:
        return [[1.0 for _ in row] for row in completions]
    return [[float(len(t)) for t in row] for row in completions]

def alike(prompts, completions, rows):
    return [[0.0 for _ in row] for row in completions]

def silent(prompts, completions, rows):
    return [[None for _ in row] for row in completions]

def one_prompt(prompts, completions, rows):
    return [[float(len(t)) if number == 0 else 0.0 for t in row] for number, row in enumerate(completions)]
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    home = tmp_path_factory.mktemp("home")
    tiny_model(home / "lm")
    (home / "rules.py").write_text(RULES)
    rows = [{"prompt": f"w{i % 7} w{i}"} for i in range(50)]
    (home / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return home


def recipe(home: Path, rule: str, objective: str, *overrides: str, completions: int = 4):
    content = {
        "name": "tiny",
        "policy": {"model": str(home / "lm")},
        "source": {
            "data": str(home / "prompts.jsonl"),
            "split": [0.9, 0.05, 0.05],
            "rollouts": {"completions": completions, "sampling": {"max_tokens": 4}},
        },
        "feedback": {"name": f"{home}/rules.py:{rule}"},
        "objective": objective,
        "train": {"steps": 4, "batch_size": 4, "lr": 1e-2, "weight_decay": 0.1, "checkpoint_every": 1},
        "evaluate": {"prompts": 0},
    }
    file = home / f"{rule}.yaml"
    file.write_text(json.dumps(content))
    return load_recipe(file, overrides)


def lines(folder: Path) -> list[dict]:
    return [{k: v for k, v in line.items() if k != "seconds"} for line in RunFolder(folder).history() if "lr" in line]


def fresh(home: Path) -> None:
    """The rule's counter at 0: another text is another module."""
    file = home / "rules.py"
    file.write_text(file.read_text() + "#\n")


@pytest.mark.parametrize(
    ("objective", "refill"),
    [("DPO", "false"), ("IPO", "false"), ("DAPO", "true"), ("RLOO", "true"), ("GRPO", "true")],
)
def test_a_task_that_is_solved_makes_no_more_updates_and_ends_as_planned(home, tmp_path, caplog, objective, refill):
    fresh(home)
    settings = recipe(home, "solved_after_two", objective, f"source.rollouts.refill={refill}")
    prefopt.run(settings, folder=tmp_path / "run")
    history = lines(tmp_path / "run")
    assert [line["rollouts/skipped"] for line in history] == [0, 0, 1, 1]
    assert [line["loss"] is None for line in history] == [False, False, True, True]
    assert [line["lr"] for line in history] == sorted((line["lr"] for line in history), reverse=True)
    assert caplog.text.count("nothing can be learnt from a batch") == 1
    assert (tmp_path / "run" / "summary.json").exists()


@pytest.mark.parametrize("objective", ["DPO", "DAPO"])
def test_the_weights_stay_where_nothing_can_be_learnt(home, tmp_path, objective):
    settings = recipe(home, "alike", objective, f"source.rollouts.refill={str(objective == 'DAPO').lower()}")
    result = prefopt.run(settings, folder=tmp_path / "run")
    begun = load_policy(settings.policy, prefopt.load_tokenizer(settings.policy), seed=0)
    assert fingerprint_weights(result.policy().model) == fingerprint_weights(begun.model)
    assert all(line["rollouts/skipped"] == 1 and line["lr"] > 0 for line in lines(result.folder)[:3])


@pytest.mark.parametrize("objective", ["GRPO", "PPO", "RLOO", "REINFORCE"])
def test_tied_rewards_are_finite_zeros_where_the_method_takes_them(home, tmp_path, objective):
    completions = 1 if objective in ("PPO", "REINFORCE") else 4
    settings = recipe(home, "alike", objective, "train.steps=2", completions=completions)
    history = lines(prefopt.run(settings, folder=tmp_path / "run").folder)
    assert all(line["rollouts/skipped"] == 0 and line["loss"] is not None for line in history)


def test_a_solved_task_resumes_to_the_same_numbers(home, tmp_path):
    settings = recipe(home, "alike", "DAPO", "source.rollouts.refill=true")
    whole = prefopt.run(settings, folder=tmp_path / "whole").folder
    part = shutil.copytree(whole, tmp_path / "part")
    for name in ("summary.json", "trained.json"):
        (part / name).unlink()
    for late in list((part / "evaluations").glob("*-step-000004.json")):
        late.unlink()
    prefopt.run(settings, folder=part, resume=True)
    assert lines(part) == lines(whole)


@pytest.mark.parametrize("minibatch", ["null", "2"])
def test_a_batch_of_which_one_prompt_is_left_is_learnt_from(home, tmp_path, minibatch):
    overrides = ["source.rollouts.refill=false", f"train.minibatch_size={minibatch}"]
    history = lines(prefopt.run(recipe(home, "one_prompt", "DPO", *overrides), folder=tmp_path / "run").folder)
    assert all(line["loss"] is not None and line["rollouts/skipped"] == 0 for line in history)


def test_limits_and_a_controller_of_the_kl_pass_over_steps_without_an_update(home, tmp_path):
    overrides = ["train.limits={rollouts/kl: [null, 100]}", "train.minibatch_size=2", "train.passes=2"]
    settings = recipe(home, "silent", "PPO", *overrides, completions=1)
    history = lines(prefopt.run(settings, folder=tmp_path / "run").folder)
    assert [line["rollouts/skipped"] for line in history] == [1] * 4
    assert history[-1]["lr"] < history[0]["lr"]


def test_a_feedback_that_never_answers_ends_the_run_after_ten_batches(home, tmp_path):
    settings = recipe(home, "silent", "RLOO", "train.steps=20")
    with pytest.raises(PrefoptError, match="no verdict on 10 batches of rollouts in a row"):
        prefopt.run(settings, folder=tmp_path / "run")
    assert len(lines(tmp_path / "run")) == 9
    assert (tmp_path / "run" / "checkpoints" / "step-000009").exists()


@pytest.mark.parametrize(("rule", "said"), [("silent", True), ("solved_after_two", False)])
def test_a_run_whose_completions_never_had_a_verdict_says_so_at_its_end(home, tmp_path, rule, said):
    fresh(home)
    screen = io.StringIO()
    run(recipe(home, rule, "RLOO", "train.steps=3"), tmp_path / "run", console=Console(file=screen, width=200))
    line = "warning: no batch of rollouts had anything to learn from; of the last: 16 completions dropped: no verdict"
    assert (line in screen.getvalue()) == said


def test_a_batch_without_verdicts_still_trains_the_terms_that_have_data_of_their_own(home, tmp_path):
    texts = [{"prompt": f"w{i}", "completion": " w1 w2"} for i in range(20)]
    (home / "texts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in texts))
    mixed = f"objective=[{{name: DPO}}, {{name: SFT, source: {{data: {home}/texts.jsonl, split: [1, 0, 0]}}}}]"
    history = lines(prefopt.run(recipe(home, "alike", "DPO", mixed), folder=tmp_path / "run").folder)
    assert [line["rollouts/skipped"] for line in history] == [1] * 4
    assert history[-1]["loss"] < history[0]["loss"]
