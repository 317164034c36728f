"""What `train.shard` cannot do is refused before a model is loaded, with what to do; the rest is planned."""

from pathlib import Path

import pytest
from _tiny import tiny_model, tiny_pairs, tiny_recipe

from prefopt import load_recipe
from prefopt.runs.planning import plan
from prefopt.support.errors import PrefoptError

ROLLOUTS = ["objective=GRPO", "feedback=builtins:len"]
REFUSED = {
    "fp16": (["train.precision=fp16"], "loss scale .*: write train.precision: bf16 or fp32"),
    "muon": (["train.optimizer=muon"], "train.optimizer: muon .* take adamw, sgd, rmsprop"),
    "of one's own": (["train.optimizer=torch.optim:NAdam"], "torch.optim:NAdam"),
    "a moving reference": (["reference.every=2"], "leave out reference.every"),
    "exact KL": (["objective=file"], "kl_policy_ref"),
    "another adapter": (["policy.adapter={method: oft}"], "only LoRA is sharded, not oft"),
    "a server": (["evaluate.sampler=vllm", "evaluate.server=http://localhost:1"], "evaluate.sampler: vllm"),
    "a mixture": (
        [*ROLLOUTS, "source.rollouts={completions: 2}", "source.writers=[mixture]"],
        "take other source.writers",
    ),
    "an environment": (
        [*ROLLOUTS, "source.rollouts={completions: 2, environment: {name: Tools, functions: ['builtins:len']}}"],
        "source.rollouts.environment",
    ),
}
EXACT = """
from dataclasses import dataclass

from prefopt import Needs
from prefopt.objectives import DPO


@dataclass(frozen=True)
class Exact(DPO):
    needs = Needs(completions=2, ordered=True, reference=True, statistics=frozenset({"kl_policy_ref"}))
"""


@pytest.fixture
def recipe_file(tmp_path: Path) -> Path:
    (tmp_path / "exact.py").write_text(EXACT)
    file = tiny_recipe(tmp_path, tiny_model(tmp_path / "lm"), tiny_pairs(tmp_path / "pairs.jsonl"))
    (tmp_path / "lm" / "model.safetensors").unlink()  # whoever loads it fails otherwise
    return file


@pytest.mark.parametrize("case", REFUSED)
def test_what_sharding_cannot_do_is_refused_with_what_to_do(case: str, recipe_file: Path) -> None:
    overrides, says = REFUSED[case]
    overrides = [o.replace("=file", f"={recipe_file.parent / 'exact.py'}:Exact") for o in overrides]
    with pytest.raises(PrefoptError, match=f"(?s)train.shard is fsdp2, and .*{says}.*, or leave train.shard out"):
        plan(load_recipe(recipe_file, [*overrides, "train.shard=fsdp2"]))


def test_lora_on_another_adapter_is_refused(recipe_file: Path, tmp_path: Path) -> None:
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text(
        f'{{"base_model_name_or_path": "{tmp_path / "lm"}", "peft_type": "LORA"}}'
    )
    overrides = [f"policy.model={adapter}", "policy.adapter={r: 2}", "train.shard=fsdp2"]
    with pytest.raises(PrefoptError, match="is an adapter, into which a new adapter would be merged"):
        plan(load_recipe(recipe_file, overrides))


@pytest.mark.parametrize(
    "overrides", [[], ["policy.adapter={r: 2}"], ["objective=BradleyTerry"], ["objective=RPO", "source.embeddings={}"]]
)
def test_what_it_can_do_is_planned(overrides: list[str], recipe_file: Path) -> None:
    plan(load_recipe(recipe_file, [*overrides, "train.shard=fsdp2"]))
