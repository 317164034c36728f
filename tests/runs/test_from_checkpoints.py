"""Every checkpoint is a model: evaluated, sampled, exported and started from, whatever was trained."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from _tiny import tiny_model, tiny_pairs, tiny_recipe
from transformers import AutoModelForCausalLM

from prefopt import PrefoptError, export, load_recipe, run
from prefopt.cli import main
from prefopt.policy import find_model
from prefopt.runs.folder import RunFolder, run_of
from prefopt.runs.inspecting import trained
from prefopt.training.weights import read_weights

KINDS = {
    "all weights": [],
    "tied": ["policy.model={home}/tied"],
    "LoRA": ["policy.adapter={r: 2}"],
    "DoRA with a whole head": ["policy.adapter={r: 2, dora: true, modules_to_save: [lm_head]}"],
    "LoRA on LoRA": ["policy.model={home}/lora", "policy.adapter={r: 2}"],
    "a reward model": ["objective=BradleyTerry"],
    "a reward model with LoRA": ["objective=BradleyTerry", "policy.adapter={r: 2}"],
    "a critic": [
        "objective=PPO", "source.rollouts={completions: 2, sampling: {max_tokens: 4}}",
        "feedback={home}/rule.py:score",
    ],
}  # fmt: skip


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """A model, one with tied embeddings, one below an adapter, and pairs."""
    home = tmp_path_factory.mktemp("home")
    tiny_model(home / "lm"), tiny_pairs(home / "pairs.jsonl")
    tied = AutoModelForCausalLM.from_pretrained(home / "lm")
    tied.config.tie_word_embeddings = True
    tied.tie_weights()
    shutil.copytree(home / "lm", home / "tied")
    tied.save_pretrained(home / "tied")
    (home / "rule.py").write_text(
        "def score(prompts, completions, rows):\n    return [[float(len(t)) for t in row] for row in completions]\n"
    )
    train = "{steps: 3, batch_size: 8, lr: 1e-2, threads: 1, checkpoint_every: 1, keep_checkpoints: 9}"
    tiny_recipe(home, home / "lm", home / "pairs.jsonl", train=train)
    below = load_recipe(home / "recipe.yaml", ["policy.adapter={r: 2}", "train.steps=1"])
    run(below, folder=home / "lora")
    return home


@pytest.fixture(scope="module", params=KINDS)
def folder(request, home) -> Path:
    """A run of each kind with a checkpoint after every step."""
    overrides = [one.replace("{home}", str(home)) for one in KINDS[request.param]]
    return run(load_recipe(home / "recipe.yaml", overrides), folder=home / "runs" / request.param).folder


def test_the_last_checkpoint_is_the_trained_policy_and_earlier_ones_are_not(folder, capsys):
    """Files, numbers of an evaluation, and an export: all of the same model."""
    numbers = {}
    for target in (folder, folder / "checkpoints" / "step-000003", folder / "checkpoints" / "step-000001"):
        out = folder / f"{target.name}.json"
        main(["evaluate", str(target), "--out", str(out)])
        numbers[target.name] = json.loads(out.read_text())
    capsys.readouterr()
    assert numbers["step-000003"] == numbers[folder.name] != numbers["step-000001"]


def test_it_is_exported_and_started_from(folder, home):
    checkpoint = folder / "checkpoints" / "step-000002"
    assert export(checkpoint, folder / "exported").difference < 1e-5
    scorer = (checkpoint / "policy" / "reward_model.json").exists()
    loss = ["objective=BradleyTerry"] if scorer else []
    for start in (checkpoint, folder / "exported"):
        settings = load_recipe(home / "recipe.yaml", [f"policy.model={start}", "train.steps=1", *loss])
        settings = settings.model_copy(update={"policy": settings.policy.model_copy(update={"adapter": None})})
        first = run(settings, folder=folder / f"from-{start.name}").before
        assert first
    values = [
        json.loads((folder / f"from-{name}" / "summary.json").read_text())["before"]["accuracy"]["value"]
        for name in ("step-000002", "exported")
    ]
    assert values[0] == pytest.approx(values[1], abs=1e-6)


def test_weights_stand_once_on_disk_where_the_model_has_no_adapter(home):
    folder = home / "once"
    run(load_recipe(home / "recipe.yaml", ["train.steps=1"]), folder=folder)
    checkpoint = folder / "checkpoints" / "step-000001"
    whole = (checkpoint / "policy" / "model.safetensors").stat().st_size
    assert (checkpoint / "model.safetensors").stat().st_size < whole / 4
    names = read_weights(checkpoint)
    model = AutoModelForCausalLM.from_pretrained(folder / "policy")
    assert names.keys() >= {f"model.{name}" for name, _ in model.named_parameters()}
    assert all(torch.equal(names[f"model.{name}"], weight) for name, weight in model.named_parameters())


def test_a_checkpoint_samples_in_the_name_of_its_run(home, capsys):
    folder = home / "sampled"
    run(load_recipe(home / "recipe.yaml", ["train.steps=1"]), folder=folder)
    main(["sample", str(folder / "checkpoints" / "step-000001"), "--number", "1"])
    assert "→" in capsys.readouterr().out


def test_one_without_its_policy_says_what_to_do(home):
    folder = home / "older"
    run(load_recipe(home / "recipe.yaml", ["train.steps=1"]), folder=folder)
    checkpoint = folder / "checkpoints" / "step-000001"
    shutil.rmtree(checkpoint / "policy")
    for look in (lambda: trained(checkpoint), lambda: find_model([str(checkpoint)])):
        with pytest.raises(PrefoptError, match=r"step-000001.*no policy/.*--resume.*next checkpoint has one"):
            look()


def test_an_unfinished_run_names_its_newest_checkpoint(home):
    folder = home / "unfinished"
    run(load_recipe(home / "recipe.yaml", ["train.steps=2"]), folder=folder)
    shutil.rmtree(folder / "policy")
    for name in ("summary.json", "trained.json"):
        (folder / name).unlink()
    for look in (lambda: trained(folder), lambda: find_model([str(folder)])):
        with pytest.raises(PrefoptError, match=r"checkpoints/step-000002"):
            look()


@pytest.mark.parametrize("place", ["", "policy", "checkpoints/step-000040", "checkpoints/step-000040/policy"])
def test_a_folder_belongs_to_a_run(tmp_path, place):
    run, model = run_of(tmp_path / "a" / place)
    inside = "checkpoints/step-000040/policy" if place.startswith("checkpoints") else "policy"
    assert (run, model) == (RunFolder(tmp_path / "a"), tmp_path / "a" / inside)
