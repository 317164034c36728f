#!/usr/bin/env bash
# Seen in peft 0.21.2 (transformers 5.23.0, torch 2.13.0).
#
# An adapter of peft starts, as a rule, as no change at all, so the model with the adapter and the model under `disable_adapter()` are the
# one that get_peft_model was given. With `init_lora_weights="pissa"`, and with "olora", the start is something else: the adapter is a part
# of the base model's own weights, and that part is subtracted from the base in place. The model with the adapter is still the one that was
# given, to rounding. Switched off, it is the base less that part: a model that nobody chose. Nothing is raised or logged.
#
# Why it matters here: DPO with peft commonly takes as its reference the policy with its adapter switched off, which saves a second model
# in memory. With these starts that reference is not the policy at step 0: log-ratios and the implicit reward are not zero before the first
# step, and the loss is measured against a damaged model. prefopt asks an adapter to say what its base says, on and off, and refuses these.
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


def moved(start):
    """How far the logits are from those before get_peft_model: with the adapter, and with the adapter switched off."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=30, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2, initializer_range=0.2
    )
    base = AutoModelForCausalLM.from_config(config)
    before = logits(base)
    model = get_peft_model(base, LoraConfig(r=2, target_modules="all-linear", init_lora_weights=start, task_type="CAUSAL_LM"))
    switched_on = logits(model)
    with model.disable_adapter():
        switched_off = logits(model)
    return [(seen - before).abs().max().item() for seen in (switched_on, switched_off)]


far = []
for start in (True, "gaussian", "pissa", "olora"):
    on, off = moved(start)
    print(f"init_lora_weights={start!r:<11} largest difference of logits to the model before: {on:.2g} on, {off:.2g} off")
    far.append((on > 1e-4, off > 1e-1))
sys.exit(0 if far == [(False, False), (False, False), (False, True), (False, True)] else 1)
PYTHON
