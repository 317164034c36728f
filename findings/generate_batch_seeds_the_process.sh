#!/usr/bin/env bash
# Seen in transformers 5.23.0, torch 2.13.0 (CPU build).
#
# `ContinuousBatchingConfig.seed` looks like a seed of the drawing. `generate_batch` gives it to `torch.manual_seed`: every call sets
# the random state of the whole process, and what the process draws afterwards (dropout, orders of data, exploration) is the same
# after each call. Of a completion the seed says nothing by itself: all requests draw from that one state, in the order of the
# scheduler, so that a prompt of the same seed has other tokens in other company.
#
# Why it matters here: rollouts drawn this way between the updates of a training would repeat the noise of every update, and the
# completions of a prompt would depend on the rest of its batch and on how many processes share it.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check torch==2.13.0 transformers==5.23.0 numpy psutil
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON'
import sys

import torch
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM
from transformers.generation import ContinuousBatchingConfig

torch.manual_seed(0)
sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
model = LlamaForCausalLM(LlamaConfig(vocab_size=60, initializer_range=0.5, **sizes)).eval()
drawing = GenerationConfig(do_sample=True, max_new_tokens=8, eos_token_id=59, pad_token_id=58)


def tokens_of_the_first(*prompts):
    settings = ContinuousBatchingConfig(seed=0, num_blocks=64, max_batch_tokens=64)
    answers = model.generate_batch(
        [list(prompt) for prompt in prompts],
        generation_config=drawing,
        continuous_batching_config=settings,
        progress_bar=False,
    )
    return next(answer.generated_tokens for answer in answers.values() if answer.prompt_ids == list(prompts[0]))


torch.manual_seed(1)
alone, first = tokens_of_the_first((1, 2, 3)), torch.rand(1).item()
torch.manual_seed(2)
again, second = tokens_of_the_first((1, 2, 3)), torch.rand(1).item()
beside = tokens_of_the_first((1, 2, 3), (4, 5, 6, 7))
print(f"a process that was seeded with 1, and one with 2, draws after the call: {first:.6f}, {second:.6f}")
print(f"the prompt alone:          {alone}\nalone once more:           {again}\nbeside another, same seed: {beside}")
sys.exit(0 if first == second and alone == again != beside else 1)
PYTHON
