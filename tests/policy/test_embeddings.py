"""RPO through whole recipes: who embeds the prompts, what is refused before a model is loaded, and what is kept."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from _tiny import WORDS, tiny_model, tiny_pairs
from transformers import AutoTokenizer, BertConfig, BertModel

from prefopt import PrefoptError, load_recipe, run
from prefopt.policy.encoder import Encoder
from prefopt.runs.planning import plan
from prefopt.support.caches import clear

RPO = "prefopt.objectives.preference.rpo:RPO"


@pytest.fixture(autouse=True)
def kept(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("PREFOPT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "embeddings"


@pytest.fixture
def encoder_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "encoder"
    config = BertConfig(
        vocab_size=WORDS + 3,
        hidden_size=12,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        initializer_range=0.5,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        BertModel(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny_model(tmp_path / "other")).save_pretrained(folder)
    return folder


@pytest.fixture
def recipe_file(tmp_path: Path) -> Path:
    content = {
        "policy": {"model": str(tiny_model(tmp_path / "lm"))},
        "source": {"data": str(tiny_pairs(tmp_path / "pairs.jsonl")), "embeddings": {"batch_size": 7}},
        "objective": {"name": RPO, "beta": 0.8, "tau": 0.1},
        "train": {"steps": 3, "batch_size": 8, "micro_batch_size": 3, "lr": 1e-3, "threads": 1},
        "evaluate": {"prompts": 0},
        "track": {"folder": str(tmp_path / "runs")},
    }
    file = tmp_path / "recipe.yaml"
    file.write_text(json.dumps(content))
    return file


def metrics(folder: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [
        {name: value for name, value in line.items() if not name.endswith(("seconds", "padding"))}
        for line in lines
        if "loss" in line
    ]


def test_by_the_policy_or_by_an_encoder(recipe_file, encoder_folder, kept, tmp_path, monkeypatch):
    by_policy = metrics(run(load_recipe(recipe_file), folder=tmp_path / "policy").folder)
    named = load_recipe(recipe_file, [f"source.embeddings.model={encoder_folder}"])
    by_encoder = metrics(run(named, folder=tmp_path / "named").folder)
    assert len(list(kept.iterdir())) == 2
    for lines in (by_policy, by_encoder):
        assert lines[0]["loss"] == pytest.approx(0.693147, abs=1e-6)
        assert all(1 / 8 < line["weight/own"] < 1 for line in lines)
    assert by_policy[0]["weight/own"] != pytest.approx(by_encoder[0]["weight/own"], rel=1e-3)

    def read(*arguments: Any) -> None:
        raise AssertionError("embedded again")

    monkeypatch.setattr(Encoder, "_embed", read)
    assert metrics(run(named, folder=tmp_path / "again").folder) == by_encoder
    run(load_recipe(recipe_file, ["source.limit=20"]), folder=tmp_path / "fewer")  # prompts of the whole data set


def test_a_fresh_adapter_changes_no_embedding(recipe_file, kept, tmp_path):
    run(load_recipe(recipe_file), folder=tmp_path / "full")
    run(load_recipe(recipe_file, ["policy.adapter={r: 2}", "seed=1", "seeds.data=0"]), folder=tmp_path / "adapter")
    assert len(list(kept.iterdir())) == 1


def test_the_data_can_bring_embeddings(recipe_file, kept, tmp_path):
    file = tmp_path / "pairs.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    for number, row in enumerate(rows):
        row["embeddings"] = [1.0, float(number % 3), 0.5]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    lines = metrics(run(load_recipe(recipe_file, ["source.embeddings=null"]), folder=tmp_path / "run").folder)
    assert 1 / 8 < lines[0]["weight/own"] < 1
    assert not kept.exists()


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("source.embeddings=null", r"no column 'embeddings' \(write `source: \{embeddings: \{\}\}` to let the policy"),
        ("source.embeddings.model=/nowhere", "no model at /nowhere"),
        ("objective=DPO", "DPO does not compare prompts: leave it out"),
        ("train.minibatch_size=4", "couples the rows"),
    ],
)
def test_refused_before_a_model_is_loaded(override, message, recipe_file, monkeypatch):
    def explode(*arguments: Any, **more: Any) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr("prefopt.policy.loading.load_weights", explode)
    with pytest.raises(PrefoptError, match=message):
        run(load_recipe(recipe_file, [override]))


def test_a_scorer_embeds_nothing(recipe_file, tmp_path):
    (tmp_path / "own.py").write_text(
        "from dataclasses import dataclass\n"
        "from prefopt import Loss, Needs, Targets\n"
        "@dataclass(frozen=True)\n"
        "class Own:\n"
        "    needs = Needs(completions=2, ordered=True, rewards=True, columns=('embeddings',))\n"
        "    def targets(self, batch, old, reference): return Targets()\n"
        "    def loss(self, batch, policy, targets): return Loss(policy.rewards[:, 1] - policy.rewards[:, 0])\n"
    )
    with pytest.raises(PrefoptError, match="name a sentence encoder"):
        plan(load_recipe(recipe_file, [f"objective={tmp_path}/own.py:Own"]))
    plan(load_recipe(recipe_file, [f"objective={tmp_path}/own.py:Own", f"source.embeddings.model={tmp_path}/lm"]))


@pytest.mark.slow
def test_two_processes_do_what_one_does(recipe_file, encoder_folder, tmp_path):
    overrides = ["policy.dtype=float64", f"source.embeddings.model={encoder_folder}"]
    one = run(load_recipe(recipe_file, overrides), folder=tmp_path / "one").folder
    clear("embeddings")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    arguments = ["-m", "prefopt.cli", "run", str(recipe_file), *overrides, "--out", str(tmp_path / "two")]
    environment = os.environ | {"PYTHONPATH": ":".join(sys.path)}
    done = subprocess.run(
        [*command, *arguments], env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    for mine, theirs in zip(metrics(one), metrics(tmp_path / "two"), strict=True):
        assert mine == pytest.approx(theirs, rel=1e-6, abs=1e-9)
