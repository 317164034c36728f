#!/usr/bin/env bash
# Seen in peft 0.21.2 (transformers 5.23.0, torch 2.13.0).
#
# LoRA's `layer_replication` builds a deeper model of the layers of its base: the copies share their weights, and each has a low-rank update
# of its own. Such updates cannot be merged, since one weight would have to hold several sums. peft means to refuse this: before it
# merges, it asks its settings for `layer_replication`. But it asks the dictionary of adapters by name, `{"default": config}`, which
# has no such key, so merge_and_unload never refuses. It adds the updates of all copies to the shared weights, and the merged
# model gives other logits than the model that was trained. Nothing is raised or logged.
#
# Why it matters here: merging is how a policy on top of an adapter starts and how whole weights are exported. A run would begin with
# another model than the one that was measured. prefopt refuses such adapters by their configuration.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check torch==2.13.0 transformers==5.23.0 peft==0.21.2
cd "$folder"
HF_HUB_OFFLINE=1 "$folder/venv/bin/python" - <<'PYTHON' 2> "$folder/warnings.txt"
import sys

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, LlamaConfig


@torch.no_grad()
def logits(model):
    return model.eval()(input_ids=torch.tensor([[3, 5, 9, 2]])).logits


def off(**settings):
    """How far the logits move by merging."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=30, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2, initializer_range=0.2
    )
    base = AutoModelForCausalLM.from_config(config)
    lora = LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False, task_type="CAUSAL_LM", **settings)
    model = get_peft_model(base, lora)
    trained = logits(model)
    return (logits(model.merge_and_unload()) - trained).abs().max().item()


plain, replicated = off(), off(layer_replication=[[0, 2], [0, 2]])
print(f"largest difference of logits by merging: {plain:.2g} of a plain adapter, {replicated:.2g} with layer_replication")
sys.exit(0 if plain < 1e-5 < 1e-2 < replicated else 1)
PYTHON
