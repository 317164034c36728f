"""How much memory an update takes, against what a dry run says: `python experiments/memory/measure.py` prints the table.

Counted is every allocation of torch's own allocator on the CPU during one training step, kernels' scratch space included
(`torch.profiler`), on top of what is there before it: weights, optimiser and reference. What the Python process and the
libraries take besides is not counted, as it is not in the estimate.
"""

import gc
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch.profiler import ProfilerActivity, profile
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from prefopt import load_recipe
from prefopt.policy.sharding import own_part
from prefopt.recipe import BUILT_IN, Recipe
from prefopt.runs.dry_run import dry_run
from prefopt.runs.memory import peak
from prefopt.runs.preparing import prepare
from prefopt.runs.run import make_trainer
from prefopt.training.devices import computing

PAIRS = "prefopt.testbeds.pocket:preferences"
GOLD = "prefopt.testbeds.pocket:gold"
ONLINE = [
    "objective=PPO", f"feedback={GOLD}", "train.passes=2",
    "source.rollouts={completions: 2, sampling: {max_tokens: 48}, batch_size: 64}",
]  # fmt: skip
SHORT = [
    f"feedback={GOLD}", "source.rollouts={completions: 4, sampling: {max_tokens: 8}, batch_size: 64}"
]  # fmt: skip
LORA = ["policy.adapter={r: 8}"]
QLORA = [*LORA, "policy.quantization=nf4"]
SHARDED = ["train.shard=fsdp2"]
SETTINGS = {
    "DPO": [],
    "DPO, micro-batches of 4": ["train.micro_batch_size=4"],
    "DPO, gradient checkpointing": ["policy.gradient_checkpointing=true"],
    "DPO, bf16 arithmetic": ["train.precision=bf16"],
    "DPO, bf16 weights": ["policy.dtype=bfloat16"],
    "DPO, LoRA": LORA,
    "DPO, LoRA, gradient checkpointing": [*LORA, "policy.gradient_checkpointing=true"],
    "DPO, QLoRA": QLORA,
    "DPO, QLoRA, bf16 weights": [*QLORA, "policy.dtype=bfloat16"],
    "DPO, QLoRA, gradient checkpointing": [*QLORA, "policy.gradient_checkpointing=true"],
    "DPO, AdamW in 8 bits": ["train.optimizer=adamw_8bit"],
    "SFT, SGD": ["objective=SFT", "train.optimizer=sgd"],
    "PPO with a value head": ONLINE,
    "PPO, LoRA": [*ONLINE, *LORA],
    "PPO with a value head, 8 tokens": [*SHORT, "objective=PPO", "train.passes=2"],
    "GRPO, LoRA, 8 tokens": [*SHORT, *LORA, "objective=GRPO"],
    "DPO, sharded": SHARDED,
    "DPO, sharded, gradient checkpointing": [*SHARDED, "policy.gradient_checkpointing=true"],
    "DPO, sharded, bf16 arithmetic": [*SHARDED, "train.precision=bf16"],
    "DPO, sharded, LoRA": [*SHARDED, *LORA],
    "PPO with a value head, sharded, 8 tokens": [*SHORT, *SHARDED, "objective=PPO", "train.passes=2"],
}
"""Sharded ones are measured in two processes."""


def large(folder: Path) -> Path:
    """A random Llama of 65 million weights with the pocket model's tokenizer."""
    tokenizer = AutoTokenizer.from_pretrained(BUILT_IN["pocket"])
    config = LlamaConfig(
        vocab_size=8000,
        hidden_size=640,
        intermediate_size=1760,
        num_hidden_layers=12,
        num_attention_heads=10,
        num_key_value_heads=10,
        tie_word_embeddings=False,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
        pad_token_id=tokenizer.pad_token_id,
    )
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def recipe_of(model: str, overrides: list[str], folder: Path, batch: int) -> Recipe:
    """The pocket world's pairs for any model."""
    content = {
        "policy": {"model": model},
        "source": {"data": PAIRS, "arguments": {"n": 300}, "max_prompt_tokens": 32, "max_completion_tokens": 48},
        "objective": "DPO",
        "train": {"steps": 3, "batch_size": batch, "micro_batch_size": batch, "lr": 1e-5, "precision": "fp32"},
        "evaluate": {"prompts": 0},
    }
    (folder / "recipe.yaml").write_text(json.dumps(content))
    return load_recipe(folder / "recipe.yaml", overrides)


def measured(settings: Recipe) -> float:
    """The most bytes in an update, after a first one has made the optimiser's state."""
    with computing(settings.train) as accelerator:
        prepared = prepare(settings, accelerator, Console(quiet=True))
        trainer = make_trainer(prepared)
        most = 0.0
        steps = iter(trainer)
        next(steps)
        for _ in range(2):
            gc.collect()
            before = _held(trainer, prepared)
            with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
                next(steps)
            most = max(most, before + _rise(profiler))
        return most


def _held(trainer: Any, prepared: Any) -> float:
    """Bytes that this process holds of weights, buffers and optimiser states."""
    modules = [prepared.models.trained, *prepared.others.values()]
    tensors = [t for module in modules for t in (*module.parameters(), *module.buffers())]
    tensors += [part for tensor in tensors for part in _levels(getattr(tensor, "quant_state", None))]
    tensors += [t for state in trainer.optimizer.state.values() for t in state.values() if isinstance(t, torch.Tensor)]
    own = [own_part(tensor) for tensor in tensors]
    return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in own}.values())


def _levels(state: Any) -> list[torch.Tensor]:
    """What bitsandbytes keeps beside a weight of 4 bits."""
    return (
        []
        if state is None
        else [t for t in (state.absmax, state.code, state.offset) if t is not None] + _levels(state.state2)
    )


def _rise(profiler: Any) -> float:
    """The highest sum of allocations and frees since the beginning."""
    events = [e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]
    now = most = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        now += event.nbytes()
        most = max(most, now)
    return most


def line(size: str, name: str, settings: Recipe) -> None:
    """Estimate and measurement; of several processes, the one that took the most."""
    estimate, found = peak(dry_run(settings).memory), measured(settings)
    if torch.distributed.is_initialized():
        every = torch.tensor(found)
        torch.distributed.all_reduce(every, torch.distributed.ReduceOp.MAX)
        found = every.item()
    if int(os.environ.get("RANK", 0)) == 0:
        print(f"| {size} | {name} | {estimate / 1e6:.1f} | {found / 1e6:.1f} | {estimate / found:.2f} |", flush=True)


def main(names: list[str]) -> None:
    """A line for each setting; those whose names are given, or all."""
    if "WORLD_SIZE" in os.environ:  # two processes, for one setting
        size, name, model, batch = names
        with tempfile.TemporaryDirectory() as home:
            line(size, name, recipe_of(model, SETTINGS[name], Path(home), int(batch)))
        return
    with tempfile.TemporaryDirectory() as home:
        folder = Path(home)
        models = {"pocket": (str(BUILT_IN["pocket"]), 64), "65M": (str(large(folder / "large")), 16)}
        print(
            "| model | setting | estimate (MB) | measured (MB) | estimate ÷ measured |\n|---|---|---|---|---|",
            flush=True,
        )
        for size, (model, batch) in models.items():
            for name, overrides in SETTINGS.items():
                if names and not any(part in f"{size} {name}" for part in names):
                    continue
                if SHARDED[0] in overrides:
                    command = [
                        sys.executable,
                        "-m",
                        "torch.distributed.run",
                        "--standalone",
                        "--nproc_per_node=2",
                        __file__,
                    ]
                    subprocess.run([*command, size, name, model, str(batch)], check=True, stderr=subprocess.DEVNULL)
                else:
                    line(size, name, recipe_of(model, overrides, folder, batch))


if __name__ == "__main__":
    main(sys.argv[1:])
