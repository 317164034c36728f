"""Runs, samples and labellings whose completions a real vLLM server writes."""

import json

import pytest
from rich.console import Console
from test_runs import metrics

from prefopt import load_recipe, run
from prefopt.policy.decode.vllm import VLLMSampler
from prefopt.runs.inspecting import sample
from prefopt.runs.label import label
from prefopt.runs.label.recipe import load_label_recipe

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("vllm")]

FEEDBACK = '''
from prefopt import Turn


def short(prompts, completions, rows):
    """Less for each letter."""
    return [[-float(len(text)) for text in of_prompt] for of_prompt in completions]


class Asks:
    def reset(self, row, seed):
        self.turns = 0

    def step(self, text, *, truncated):
        self.turns += 1
        return Turn("the film", -float(len(text.split())), self.turns == 2)
'''


@pytest.fixture
def recipe_file(tmp_path, served_folder, vllm_server):
    (tmp_path / "own.py").write_text(FEEDBACK)
    words = ["film", "food", "view", "room", "seems", "good", "bad", "fine", "dull", "bright", "grim", "great"]
    rows = [{"prompt": f"the {words[i % 12]} is {words[(5 * i + 1) % 12]}"} for i in range(24)]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    asked = {"sampler": "vllm", "server": vllm_server}
    tree = {
        "policy": {"model": str(served_folder), "adapter": {"r": 4}},
        "source": {
            "data": str(tmp_path / "prompts.jsonl"),
            "rollouts": {"completions": 4, "sampling": {"temperature": 0.8, "max_tokens": 6}, **asked},
        },
        "feedback": f"{tmp_path / 'own.py'}:short",
        "objective": {"name": "GRPO", "tis": 1000},
        "train": {"steps": 3, "batch_size": 4, "lr": 0.05},
        "evaluate": {"prompts": 4, "sampling": {"max_tokens": 6}, "gold": f"{tmp_path / 'own.py'}:short", **asked},
        "track": {"folder": str(tmp_path / "runs")},
    }
    file = tmp_path / "recipe.yaml"
    file.write_text(json.dumps(tree))
    return file


def steps_of(file, tmp_path, *overrides):
    folder = run(load_recipe(file, overrides), folder=tmp_path / "run", console=Console(quiet=True)).folder
    return [line for line in metrics(folder) if "loss" in line]


def test_the_sampler_is_the_policy_in_every_step_of_a_run(recipe_file, tmp_path):
    steps = steps_of(recipe_file, tmp_path)
    assert len(steps) == 3
    for line in steps:
        assert line["ratio/sampler"] == pytest.approx(1, abs=1e-4)
        assert abs(line["rollouts/sampler_kl"]) < 1e-4
    assert steps[-1]["rollouts/kl_k3"] > 1e-3  # so that former weights would show
    assert (tmp_path / "run" / "policy" / "adapter_model.safetensors").is_file()


def test_the_reference_writes_beside_the_policy(recipe_file, tmp_path):
    steps = steps_of(
        recipe_file,
        tmp_path,
        "objective={name: XPO}",
        "source.writers=[reference]",
        "source.rollouts.completions=1",
        "train.steps=2",
    )
    assert len(steps) == 2 and abs(steps[-1]["rollouts/sampler_kl"]) < 1e-4


def test_episodes_of_several_turns(recipe_file, tmp_path):
    environment = f"source.rollouts.environment={{name: '{tmp_path / 'own.py'}:Asks', max_turns: 2, max_tokens: 40}}"
    steps = steps_of(recipe_file, tmp_path, environment, "feedback=null", "train.steps=2")
    for line in steps:
        assert line["ratio/sampler"] == pytest.approx(1, abs=1e-4)
        assert line["rollouts/stop_error"] == 0 and line["rollouts/length"] > 1


def test_completions_that_are_drawn_while_the_policy_is_trained_are_of_the_policy_before(
    recipe_file, tmp_path, monkeypatch
):
    """The same to rounding as by turns, evaluations between the steps included."""
    asked = ("source.rollouts.staleness=1", "evaluate.every=1", "train.steps=4")
    steps = steps_of(recipe_file, tmp_path, *asked)
    assert [line["rollouts/age"] for line in steps] == [0, 1, 1, 1]
    assert steps[0]["ratio/sampler"] == pytest.approx(1, abs=1e-4)
    assert all(abs(line["ratio/sampler_max"] - 1) > 1e-3 for line in steps[1:])
    monkeypatch.delattr(VLLMSampler, "remote")
    by_turns = steps_of(recipe_file, tmp_path / "by turns", *asked)
    for name in ("loss", "ratio/sampler_max", "rollouts/length"):
        assert [line[name] for line in steps] == pytest.approx([line[name] for line in by_turns], abs=1e-3), name


def test_samples_and_labels(recipe_file, tmp_path, served_folder, vllm_server):
    own = [text for one in sample(load_recipe(recipe_file), None, 2, 3) for text in one.completions]
    assert len(own) == 6 and all(1 <= one.tokens <= 6 for one in own)
    tree = {
        "feedback": f"{tmp_path / 'own.py'}:short",
        "source": {"data": str(tmp_path / "prompts.jsonl")},
        "policy": {"model": str(served_folder)},
        "samples": {"completions": 2, "sampling": {"max_tokens": 4}, "sampler": "vllm", "server": vllm_server},
        "prompts": 4,
    }
    file = tmp_path / "label.yaml"
    file.write_text(json.dumps(tree))
    label(load_label_recipe(file), tmp_path / "labels", Console(quiet=True))
    assert (tmp_path / "labels" / "manifest.json").is_file()
