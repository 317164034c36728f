"""How fast two processes draw completions of a sharded model, and how many of its weights are whole meanwhile.

torchrun --standalone --nproc_per_node 2 experiments/sharding/drawing.py MODEL none|layer|model
"""

import sys
import time
from typing import Any

import torch
from accelerate import Accelerator
from torch.distributed.tensor import DTensor

from prefopt import recipe
from prefopt.policy import TransformersSampler, load_policy, load_tokenizer
from prefopt.policy.parallel import draw
from prefopt.policy.sharding import own_part, shard_weights

PROMPTS = [tuple(range(10 + row, 40 + row)) for row in range(8)]
MB = 4 / 2**20


def main(model: str, gather: str) -> None:
    """Print a line: 8 prompts × 4 completions of at most 32 tokens, in fp32."""
    torch.set_num_threads(1)
    accelerator, spec = Accelerator(cpu=True), recipe.Policy(model=(model,), dtype="float32")
    policy = load_policy(spec, load_tokenizer(spec), seed=0)
    if gather != "none":
        shard_weights(policy, accelerator, recipe.Shard.model_validate({"name": "fsdp2", "gather": gather}))
    held, whole = sum(own_part(weight).numel() for weight in policy.parameters()) * MB, 0.0
    sampler, seeds = TransformersSampler(128, accelerator.autocast), torch.arange(len(PROMPTS))

    def count(*_: Any) -> None:
        nonlocal whole
        whole = max(whole, sum(w.numel() for w in policy.parameters() if not isinstance(w, DTensor)) * MB)

    layers: Any = policy.causal.model.layers
    hooks = [layer.mlp.register_forward_pre_hook(count) for layer in layers]
    draw(sampler, policy, PROMPTS[:2], 2, recipe.Sampling(max_tokens=2), seeds[:2], accelerator)()
    for hook in hooks:
        hook.remove()
    begun = time.perf_counter()
    drawn = draw(sampler, policy, PROMPTS, 4, recipe.Sampling(max_tokens=32), seeds, accelerator)()
    seconds, tokens = time.perf_counter() - begun, int(drawn.mask.sum())
    if accelerator.is_main_process:
        print(
            f"{gather}: a process holds {held:.0f} MB, whole at a time {whole:.0f} MB; {tokens} tokens in {seconds:.1f} s, "
            f"{tokens / seconds:.0f} a second; their sum {int(drawn.completion_ids.sum())}"
        )
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
