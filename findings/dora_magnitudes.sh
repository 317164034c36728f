#!/usr/bin/env bash
# Seen in transformers 5.23.0 with peft 0.21.2 (torch 2.13.0).
#
# A DoRA adapter is two matrices and a magnitude for each row of a layer. peft saves the magnitudes under `….lora_magnitude_vector`, and
# reads them under that name. transformers' own reader, AutoModelForCausalLM.from_pretrained(folder), looks for
# `….lora_magnitude_vector.weight`, so it finds none, and every magnitude starts anew. What it reads is neither the trained model nor the
# base. Nothing is raised: a report in the log lists the names as unexpected and missing. peft's AutoPeftModelForCausalLM reads the same
# folder right, and LoRA adapters are read alike by both.
#
# Why it matters here: a policy that was trained with DoRA is measured, saved, and then served by whoever loads its folder the usual way
# as another model. Named with `.weight`, the magnitudes are found by transformers and by peft alike; prefopt saves them so.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check torch==2.13.0 transformers==5.23.0 peft==0.21.2
cd "$folder"
HF_HUB_OFFLINE=1 "$folder/venv/bin/python" - <<'PYTHON' 2> "$folder/warnings.txt"
import sys

import torch
from peft import AutoPeftModelForCausalLM, LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, LlamaConfig

torch.manual_seed(0)
config = LlamaConfig(
    vocab_size=30, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2, initializer_range=0.2
)
AutoModelForCausalLM.from_config(config).save_pretrained("base")
FILE, NAME = "policy/adapter_model.safetensors", "lora_magnitude_vector"


@torch.no_grad()
def logits(model):
    return model.eval()(input_ids=torch.tensor([[3, 5, 9, 2]])).logits


def off(expected, loader):
    """How far the logits of what a loader reads are from those of the model that was saved."""
    torch.manual_seed(1)
    return (logits(loader.from_pretrained("policy")) - expected).abs().max().item()


seen = []
for what in ("LoRA", "DoRA", "DoRA, named .weight"):
    if not what.endswith(".weight"):
        settings = LoraConfig(r=2, use_dora=what == "DoRA", target_modules="all-linear", task_type="CAUSAL_LM")
        model = get_peft_model(AutoModelForCausalLM.from_pretrained("base"), settings)
        with torch.no_grad():
            for weight in model.parameters():
                weight += 0.1 * torch.randn_like(weight) * weight.requires_grad
        expected = logits(model)
        model.save_pretrained("policy")
    else:
        weights = load_file(FILE)
        named = {f"{key}.weight" if key.endswith(NAME) else key: weight for key, weight in weights.items()}
        save_file(named, FILE, {"format": "pt"})
    difference = [off(expected, loader) for loader in (AutoModelForCausalLM, AutoPeftModelForCausalLM)]
    print(f"{what:<20} largest difference of logits: {difference[0]:.2g} by transformers, {difference[1]:.2g} by peft")
    seen.append([value > 0.1 for value in difference])
sys.exit(0 if seen == [[False, False], [True, False], [False, False]] else 1)
PYTHON
