#!/usr/bin/env bash
# Seen in torch 2.13.0 (CPU build, Linux).
#
# A step of AdamW or SGD changes the weights in place. With `fused=True` the weights' version counters do not go up, as they do with
# the default and with `foreach`. These counters are what autograd goes by when it refuses a backward pass through weights that
# have changed since the forward pass. So where the default raises, the fused optimiser lets the same program through, and its
# gradient is of the old loss at the new weights. Anything else that asks the counter whether a model has changed is told "no".
#
# Why it matters here: a loop that trains while it still holds graphs of an earlier step (several losses of one batch, an update
# overlapped with the next one's forward pass) is guarded by that error, and switching to the faster optimiser removes the guard
# without a word. A memory of what a model has said, kept until a counter changes, gives the untrained model's answers for ever: it
# made an opponent in self-play one that never learns.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check torch==2.13.0 numpy
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON'
import sys

import torch


def second_gradient(**settings):
    """d/dw of w·w, whose backward pass comes after a step on another loss that takes w from 1 to .5."""
    weight = torch.nn.Parameter(torch.tensor(1.0))
    optimiser = torch.optim.SGD([weight], lr=1.0, **settings)
    first, second = weight * 0.5, weight * weight
    first.backward()
    optimiser.step()  # 1 − .5
    optimiser.zero_grad()
    counter = weight._version
    try:
        second.backward()
    except RuntimeError:
        return counter, "refused"
    return counter, weight.grad.item()


found = {name: second_gradient(**{name: True} if name != "default" else {}) for name in ("default", "foreach", "fused")}
for name, (counter, gradient) in found.items():
    print(f"{name:8} counter {counter}, second backward pass: {gradient}")
print("the gradient of w·w where it was computed, at w = 1, is 2")

weight = torch.nn.Parameter(torch.ones(3))
weight.grad = torch.ones(3)
torch.optim.AdamW([weight], fused=True).step()
print("AdamW, fused: counter", weight._version, "weights", weight.tolist())
expected = {"default": (1, "refused"), "foreach": (1, "refused"), "fused": (0, 1.0)}
sys.exit(0 if found == expected and weight._version == 0 and weight[0] != 1 else 1)
PYTHON
