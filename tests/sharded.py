"""What two processes with sharded weights come to; a program that torchrun starts, once for all cases.

torchrun --standalone --nproc_per_node 2 tests/sharded.py FOLDER
"""

import sys
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from _tiny import tiny_model, tiny_pairs, tiny_recipe
from accelerate import Accelerator
from peft import LoraConfig, get_peft_model
from rich.console import Console
from torch import Tensor
from torch.distributed.tensor import DTensor
from transformers import LlamaForSequenceClassification, MambaConfig, MambaForCausalLM
from updates import CASES, Batches, make_policy, seven_rows, tiny_llama, weights

from prefopt import load_recipe, recipe, run
from prefopt.objectives import BradleyTerry
from prefopt.objectives.terms import Term
from prefopt.policy import Policy, Scorer, make_reference
from prefopt.policy.compat import ignore_renamed_checkpointing
from prefopt.policy.critic import Critic
from prefopt.policy.decode.sampler import TransformersSampler
from prefopt.policy.parallel import draw, shard
from prefopt.policy.sharding import asked_apart, own_part, shard_weights, whole_weights
from prefopt.support.errors import PrefoptError
from prefopt.training import loop
from prefopt.training.loop import Trainer
from prefopt.types import Batch

FEEDBACK = """
import torch

from prefopt import Verdict


def even(prompts, completions, rows):
    return [[sum(w[1:].isdigit() and int(w[1:]) % 2 == 0 for w in text.split()) / 5 for text in ts] for ts in completions]


def evener(prompts, completions, rows):
    scores = torch.tensor(even(prompts, completions, rows))
    return Verdict(scores, torch.sigmoid(scores[:, :, None] - scores[:, None]))
"""

GUESSING = """
from prefopt import Turn


class Guessing:
    stop = ("w1", "w2")

    def reset(self, row, seed):
        self.left = 1 + len(row["prompt"]) % 3

    def step(self, text, *, truncated):
        self.left -= 1
        return Turn(" w3 w4", len(text) % 5 / 5, truncated or not self.left)
"""

ONLINE = (
    "source.rollouts={completions: 4, sampling: {max_tokens: 5}}",
    "feedback=${folder}/feedback.py:even",
)

SHORT = ("train.steps=2", "evaluate.prompts=2")

SERVED = (
    *SHORT,
    "source.rollouts={completions: 2, sampling: {max_tokens: 5}, sampler: vllm, server: '${vllm}'}",
    "feedback=${folder}/feedback.py:even",
)

SHARDED = (
    "dpo, checkpointed",
    "rpo",
    "rpo unpaired",
    "coupled+sft",
    "ppo",
    "grpo",
    "reward model",
    "ppo, critic of its own",
)


def model_of(case: str) -> Policy | Scorer:
    """In float64, reading plain rows: sharded models read no others, and Llama's norms round to fp32 row by row."""
    if case == "reward model":
        small = tiny_llama()
        small.config.num_labels, small.config.pad_token_id = 1, 0
        torch.manual_seed(2)
        scorer = LlamaForSequenceClassification(small.config).double()
        scorer.model.load_state_dict(small.model.state_dict())
        reward = Scorer(scorer)
        reward._prefix_sharing.shares = False
        return reward
    policy = make_policy(case.partition(",")[0], torch.float64)
    if case == "ppo, critic of its own":
        policy.critic = Critic(tiny_llama(seed=1).model)
        torch.nn.init.normal_(policy.critic.head.linear.weight, generator=torch.Generator().manual_seed(1))
        policy.critic._prefix_sharing.shares = False
    if case == "dpo, checkpointed":
        ignore_renamed_checkpointing()
        policy.causal.gradient_checkpointing_enable({"use_reentrant": False})
    if case == "dpo, lora":
        config = LoraConfig(r=2, lora_alpha=64, target_modules="all-linear", task_type="CAUSAL_LM", lora_bias=False)
        policy = Policy(get_peft_model(policy.causal, config, autocast_adapter_dtype=False))
    policy._prefix_sharing.shares = False
    return policy


def terms_of(case: str) -> Sequence[Term]:
    return [Term(BradleyTerry())] if case == "reward model" else CASES[case.partition(",")[0]]


def update(case: str, shards: bool) -> tuple[Tensor, float, list[dict[str, float]]]:
    """θ_3 − θ_0, what share of the weights this process held, and the metrics of each step."""
    accelerator, model = Accelerator(cpu=True), model_of(case)
    before = weights(model)
    reference: Any = None
    if isinstance(model, Policy):
        reference = make_reference(model, recipe.Reference(), recipe.Policy(model=("none",)))
        reference.policy._prefix_sharing.shares = False
        with torch.no_grad():
            for weight in () if reference.policy is model else reference.policy.parameters():
                weight.mul_(0.9)
    if shards:
        shard_weights(model, accelerator, recipe.Shard(name="fsdp2"))
        if reference is not None and reference.policy is not model:
            shard_weights(reference.policy, accelerator, recipe.Shard(name="fsdp2"))
    held = sum(own_part(weight).numel() for weight in model.parameters()) / len(before)
    source = Batches(seven_rows(case.partition(",")[0]))
    passes = 2 if terms_of(case)[0].objective.needs.rollouts else 1
    spec = recipe.Train(
        steps=3, lr=3e-3, schedule="constant", warmup=0, batch_size=7, micro_batch_size=3, passes=passes
    )
    trainer = Trainer(model, terms_of(case), source, spec, 3, accelerator, reference)
    steps = [step.metrics for step in trainer]
    trainer.check_finite()
    with whole_weights(model, accelerator=accelerator):
        return weights(model) - before if accelerator.is_main_process else before, held, steps


def update_by_own_counts() -> Tensor:
    """The update of RPO if every process divided by the number of its own rows: what must not be."""
    accelerator, right = Accelerator(cpu=True), loop.counts

    def own_counts(terms: Sequence[Term], batch: Batch) -> list[int]:
        return right(terms, batch.rows(shard(batch, 3, accelerator).rows[accelerator.process_index]))

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(loop, "counts", own_counts)
        return update("rpo", shards=True)[0]


def asked_different_numbers_of_times() -> dict[str, Any]:
    """How far the answers of two sharded policies are from those of whole ones, and which layers were whole at a time."""
    process, ids = Accelerator(cpu=True).process_index, torch.arange(1, 6)[None]
    policies = [make_policy("dpo", torch.float64), Policy(tiny_llama(seed=1))]
    with torch.no_grad():
        expected = [policy.model(input_ids=ids).logits for policy in policies]
    for policy in policies:
        shard_weights(policy, Accelerator(cpu=True), recipe.Shard(name="fsdp2"))
    layers: Any = policies[0].causal.model.layers
    whole: set[int] = set()

    def count(*_: Any) -> None:
        whole.add(sum(not isinstance(layer.mlp.up_proj.weight, DTensor) for layer in layers))

    hook = layers[1].mlp.register_forward_pre_hook(count)
    asked, worst, refused = [[0, 0, 1, 0, 0], [1, 1, 0]][process], 0.0, ""
    with torch.no_grad(), asked_apart(policies, nullcontext, torch.device("cpu")):
        for number in asked:
            difference = policies[number].model(input_ids=ids).logits - expected[number]
            worst = max(worst, float(difference.abs().max()))
    hook.remove()
    try:
        with torch.no_grad(), asked_apart(policies, nullcontext, torch.device("cpu")):
            if process:
                raise PrefoptError("this one has had enough")
            for _ in range(3):
                policies[0].model(input_ids=ids)
    except PrefoptError as error:
        refused = str(error)
    return {"worst": worst, "whole": whole, "refused": refused}


def draw_by_generate(shards: bool) -> Tensor:
    """What `model.generate` writes for five prompts, two of them at a time: completions [5, 2, T] that end at different times."""
    torch.manual_seed(0)
    config = MambaConfig(vocab_size=50, hidden_size=16, num_hidden_layers=2, state_size=4, initializer_range=0.3)
    policy, accelerator = Policy(MambaForCausalLM(config).double().eval()), Accelerator(cpu=True)
    policy.causal.generation_config.eos_token_id = [1, 2, 3, 4, 5]  # type: ignore[union-attr]
    if shards:
        shard_weights(policy, accelerator, recipe.Shard(name="fsdp2"))
    prompts, settings = [tuple(range(5, 8 + row)) for row in range(5)], recipe.Sampling(max_tokens=12)
    return draw(TransformersSampler(2), policy, prompts, 2, settings, torch.arange(5), accelerator)().completion_ids


RUNS: dict[str, list[str]] = {
    "dpo": ["train.checkpoint_every=1"],
    "lora": ["policy.adapter={r: 2, alpha: 8}", "evaluate.every=1", "train.keep_best=nll", "train.checkpoint_every=2"],
    "reward model": ["objective=BradleyTerry"],
    "grpo": [*ONLINE, "objective={name: GRPO, beta: 0.1}"],
    "ppo": [*ONLINE, "objective=PPO", "policy.critic.model=${lm}", "train.checkpoint_every=3"],
    "grpo, gathered whole": [
        *ONLINE,
        *SHORT,
        "objective=GRPO",
        "train.shard={name: fsdp2, gather: model, offload: true}",
    ],
    "a mixture writes": [
        *SHORT,
        "source.rollouts={completions: 1, sampling: {max_tokens: 5}}",
        "source.writers=[mixture]",
        "feedback=${folder}/feedback.py:evener",
        "objective=NashMD",
    ],
    "episodes": [ONLINE[0], *SHORT, "objective=GRPO", "source.rollouts.environment=${folder}/guessing.py:Guessing"],
    "vllm": ["objective=GRPO", *SERVED],
    "vllm, lora": [
        "objective=GRPO",
        *SERVED,
        "source.rollouts.staleness=1",
        "policy.adapter={r: 2, alpha: 8}",
        "evaluate.sampler=vllm",
        "evaluate.server=${vllm}",
    ],
}
"""Overrides of runs, which go through evaluation, sampling, checkpoints and saving."""

BF16 = ("train.precision=bf16", "policy.dtype=float32")


def run_one(folder: Path, name: str, place: str, *overrides: str, resume: bool = False) -> Path:
    """The folder of a run of three steps, in `folder/place`; at a constant rate, so that a longer one begins like it."""
    common = ["train.shard=fsdp2", "train.steps=3", "train.schedule=constant", "policy.dtype=float64"]
    served = folder / "vllm"
    variables = {"lm": folder / "lm", "folder": folder, "vllm": served.read_text() if served.exists() else "none"}
    common += [f"variables.{name}={value}" for name, value in variables.items()]
    settings = load_recipe(folder / "recipe.yaml", [*common, *RUNS[name], *overrides])
    return run(settings, folder=folder / place / name, resume=resume, console=Console(quiet=True)).folder


def prepare(folder: Path) -> None:
    """Everything that the runs read, and a run of one process for two to go on with."""
    tiny_recipe(folder, tiny_model(folder / "lm"), tiny_pairs(folder / "pairs.jsonl"))
    (folder / "feedback.py").write_text(FEEDBACK)
    (folder / "guessing.py").write_text(GUESSING)
    run_one(folder, "dpo", "begun by one")


def main() -> None:
    torch.set_num_threads(1)
    folder = Path(sys.argv[1])
    found = {case: update(case, shards=True) for case in SHARDED}
    others = {"by own counts": update_by_own_counts(), "asked apart": asked_different_numbers_of_times()}
    others["by generate"] = draw_by_generate(shards=True)
    torch.save(found | others, folder / f"updates-{Accelerator(cpu=True).process_index}.pt")
    for name in RUNS:
        run_one(folder, name, "two")
    run_one(folder, "dpo", "bf16, two", *BF16)
    run_one(folder, "dpo", "begun by one", "train.steps=5", resume=True)
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
