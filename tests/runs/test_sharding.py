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
    "exact KL": (["objective=file:Exact"], "kl_policy_ref"),
    "another adapter": (["policy.adapter={method: oft}"], "only LoRA is sharded, not oft"),
    "a sampler of one's own": ([*ROLLOUTS, "source.rollouts={sampler: 'file:Sampler'}"], "take transformers or vllm"),
    "an environment with the run's models": (
        [*ROLLOUTS, "source.rollouts={environment: 'file:Asking'}"],
        "source.rollouts.environment: .*:Asking asks for the run's models",
    ),
    "a judge that is the policy": (
        ["evaluate.judge={name: Pairwise, model: self}"],
        "evaluate.judge: Pairwise would ask the policy on one process alone: give it a model of its own",
    ),
    "a member that asks the policy": (
        ["evaluate.gold={name: WeightedSum, weights: [1], members: ['file:Likely']}"],
        "evaluate.gold: .*:Likely would ask the policy",
    ),
    "a metric that asks the policy": (["evaluate.metrics.likely=file:Likely"], "evaluate.metrics.likely: .*:Likely"),
    "a callback that asks the policy": (["train.callbacks=['file:Watching']"], "the callback .*:Watching asks for"),
}
OWN = """
from dataclasses import dataclass

from prefopt import Needs
from prefopt.objectives import DPO


@dataclass(frozen=True)
class Exact(DPO):
    needs = Needs(completions=2, ordered=True, reference=True, statistics=frozenset({"kl_policy_ref"}))


class Sampler:
    def __call__(self, model, prompt_ids, completions, settings, seeds): ...


class Asking:
    def __init__(self, models): ...

    def reset(self, row, seed): ...

    def step(self, text, *, truncated): ...


class Likely:
    def __init__(self, policy=None): ...

    def __call__(self, prompts, completions, rows): ...


class Watching:
    def __init__(self, policy): ...

    def __call__(self, step): ...
"""


@pytest.fixture
def recipe_file(tmp_path: Path) -> Path:
    (tmp_path / "own.py").write_text(OWN)
    file = tiny_recipe(tmp_path, tiny_model(tmp_path / "lm"), tiny_pairs(tmp_path / "pairs.jsonl"))
    (tmp_path / "lm" / "model.safetensors").unlink()  # whoever loads it fails otherwise
    return file


@pytest.mark.parametrize("case", REFUSED)
def test_what_sharding_cannot_do_is_refused_with_what_to_do(case: str, recipe_file: Path) -> None:
    overrides, says = REFUSED[case]
    overrides = [o.replace("file:", f"{recipe_file.parent / 'own.py'}:") for o in overrides]
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


PLANNED = (
    [],
    ["policy.adapter={r: 2}", "policy.gradient_checkpointing=true", "train.precision=bf16"],
    ["objective=BradleyTerry"],
    ["objective=RPO", "source.embeddings={}"],
    ["evaluate.sampler=vllm", "evaluate.server=http://localhost:1"],
    ["train.shard={name: fsdp2, offload: true, gather: model}"],
)


@pytest.mark.parametrize("overrides", PLANNED)
def test_what_it_can_do_is_planned(overrides: list[str], recipe_file: Path) -> None:
    plan(load_recipe(recipe_file, ["train.shard=fsdp2", *overrides]))
