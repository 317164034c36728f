#!/usr/bin/env bash
# Seen in accelerate 1.15.0 with torch 2.13.0.
#
# `Accelerator(cpu=True, mixed_precision="fp16")` is made without a warning and says that its mixed precision is fp16. What runs within its
# `autocast()`, and what a prepared model computes, is fp32 all the same, and it has no scaler of losses. torch itself has both on CPUs:
# `torch.autocast("cpu", torch.float16)` computes a product in fp16, and `GradScaler("cpu")` leaves out a step that overflows and halves
# its scale. With "bf16" in the place of "fp16" the same accelerator does compute in bf16.
#
# Why it matters here: a run that asked for fp16 and was tried on CPUs would show that fp16 trains as well as fp32, having trained in fp32.
# prefopt's `train.precision: fp16` therefore takes autocast and the scaler from torch.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check torch==2.13.0 accelerate==1.15.0
changed=0
"$folder/venv/bin/python" -W error::UserWarning - <<'PYTHON' || changed=1
import json

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState

seen = {}
for precision in ("fp16", "bf16"):
    AcceleratorState._reset_state(True)
    accelerator = Accelerator(cpu=True, mixed_precision=precision)
    with accelerator.autocast():
        product = torch.ones(2, 4) @ torch.ones(4, 2)

    seen[precision] = {
        "says": accelerator.mixed_precision,
        "computes": str(product.dtype),
        "scaler": accelerator.scaler is not None,
    }
with torch.autocast("cpu", torch.float16):
    seen["torch"] = str((torch.ones(2, 4) @ torch.ones(4, 2)).dtype)

weight = torch.nn.Parameter(torch.ones(1))
optimizer, scaler = torch.optim.SGD([weight], 1.0), torch.amp.GradScaler("cpu", init_scale=4.0)
scaler.scale(weight.sum()).backward()
weight.grad.fill_(float("inf"))
scaler.step(optimizer)
scaler.update()
seen["overflow"] = {"weight": weight.item(), "scale": scaler.get_scale()}
print(json.dumps(seen, indent=1))
assert seen == {
    "fp16": {"says": "fp16", "computes": "torch.float32", "scaler": False},
    "bf16": {"says": "bf16", "computes": "torch.bfloat16", "scaler": False},
    "torch": "torch.float16",
    "overflow": {"weight": 1.0, "scale": 2.0},
}, "this is not what was seen"
PYTHON
exit $changed
