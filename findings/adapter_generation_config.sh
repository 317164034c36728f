#!/usr/bin/env bash
# Seen in transformers 5.23.0 with peft 0.21.2 (torch 2.13.0).
#
# An adapter's folder may hold a generation_config.json, and `GenerationConfig.from_pretrained(folder)` reads it. But a model that is
# loaded from the folder, by transformers' AutoModelForCausalLM or by peft's AutoPeftModelForCausalLM, has the generation settings of
# the base model alone: end tokens and padding that were saved beside the adapter are ignored, without a warning.
#
# Why it matters here: a policy that is trained with LoRA to end its answers with another token than the base model's was evaluated with
# that token, and whoever loads its folder the usual way samples past it, up to the length limit. Same weights, other completions.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check torch==2.13.0 transformers==5.23.0 peft==0.21.2
cd "$folder"
HF_HUB_OFFLINE=1 "$folder/venv/bin/python" - <<'PYTHON' 2> "$folder/warnings.txt"
import sys

from peft import AutoPeftModelForCausalLM, LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, GenerationConfig, LlamaConfig

config = LlamaConfig(
    vocab_size=30, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2, eos_token_id=0, bos_token_id=None
)
AutoModelForCausalLM.from_config(config).save_pretrained("base")
adapted = get_peft_model(
    AutoModelForCausalLM.from_pretrained("base"), LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM")
)
adapted.save_pretrained("policy")
GenerationConfig(eos_token_id=[0, 7], pad_token_id=5).save_pretrained("policy")

saved = GenerationConfig.from_pretrained("policy")
print(f"saved beside the adapter:   eos {saved.eos_token_id}, pad {saved.pad_token_id}")
seen = []
for loader in (AutoModelForCausalLM, AutoPeftModelForCausalLM):
    settings = loader.from_pretrained("policy").generation_config
    seen.append((settings.eos_token_id, settings.pad_token_id))
    print(f"{loader.__name__:<27} eos {settings.eos_token_id}, pad {settings.pad_token_id}")
sys.exit(0 if seen == [(0, None), (0, None)] else 1)
PYTHON
