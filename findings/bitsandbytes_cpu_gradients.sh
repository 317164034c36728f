#!/usr/bin/env bash
# Seen in bitsandbytes 0.50.2 (torch 2.13.0, transformers 5.23.0, peft 0.21.2), on a CPU with AVX512-BF16.
#
# On such a CPU a `Linear4bit` that is asked once in evaluation mode without a gradient packs its weights anew, in place, for a kernel
# that computes in bf16, whatever the compute dtype. It never goes back: later passes in training mode take the same kernel, which has no
# derivative. Gradients then reach an adapter's second matrices where the way to the loss is free of quantised layers, and none of the
# layers below; the loss still falls a little, by the last layers. torch prints one warning about an operator without autograd kernel.
#
# Why it matters here: the usual loop of QLoRA, evaluate and then train, trains a few matrices of the adapter alone, and what an
# evaluation measures is bf16 of another packing than what training computes in float32. prefopt switches the packing off
# (`support_avx512bf16_for_cpu = False` on every layer), and trains and evaluates on the same numbers.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check torch==2.13.0 transformers==5.23.0 peft==0.21.2 accelerate==1.15.0 \
    bitsandbytes==0.50.2
cd "$folder"
CUDA_VISIBLE_DEVICES="" HF_HUB_OFFLINE=1 "$folder/venv/bin/python" - <<'PYTHON' 2> "$folder/warnings.txt"
import sys

import bitsandbytes
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, LlamaConfig

if not bitsandbytes.functional.has_avx512bf16():
    sys.exit(print("this CPU has no AVX512-BF16, so the kernel is not taken: nothing to see here"))

torch.manual_seed(0)
config = LlamaConfig(
    vocab_size=64, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2, initializer_range=0.2
)
AutoModelForCausalLM.from_config(config).save_pretrained("base")
ids = torch.arange(2, 34)[None]


def gradients(model):
    """Logits in training mode, and the adapter's second matrices whose gradient is zero or not there."""
    model.train().zero_grad()
    logits = model(input_ids=ids).logits
    logits.log_softmax(-1)[0, :-1].gather(-1, ids[0, 1:, None]).sum().backward()
    second = [weight for name, weight in model.named_parameters() if "lora_B" in name]
    return logits.detach(), sum(w.grad is None or not w.grad.abs().max() for w in second), len(second)


seen = []
for packs in (True, False):
    quantised = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32)
    base = AutoModelForCausalLM.from_pretrained("base", quantization_config=quantised, dtype=torch.float32)
    for layer in base.modules():
        if isinstance(layer, bitsandbytes.nn.Linear4bit) and not packs:
            layer.support_avx512bf16_for_cpu = False
    model = get_peft_model(base, LoraConfig(r=4, target_modules="all-linear"))
    before, without, count = gradients(model)
    with torch.no_grad():
        evaluated = model.eval()(input_ids=ids).logits
    after, without_after, _ = gradients(model)
    print(
        f"{'as it comes' if packs else 'switched off'}: {without} of {count} matrices without a gradient before an evaluation, "
        f"{without_after} after; its logits differ from training's by {(evaluated - before).abs().max():.2g}, and training's from "
        f"those before by {(after - before).abs().max():.2g}"
    )
    seen.append((without, without_after > 0, bool((after - before).abs().max() > 1e-3)))
sys.exit(0 if seen == [(0, True, True), (0, False, False)] else 1)
PYTHON
