#!/usr/bin/env bash
# Seen in transformers 5.23.0 and 4.51.0 (torch 2.13.0).
#
# transformers 5 writes the base of rotary positions into config.json as `rope_parameters.rope_theta`. 4.51 looks for `rope_theta` at the
# top level, finds none, and takes the default of the architecture, 10,000 for Llama. The weights load as they are, so a model of another
# base is another model, with other log-probs. Neither an error nor a warning says so, though 4.51 keeps `rope_parameters` in the
# configuration that it read. A model whose base is 10,000 is read right.
#
# Why it matters here: prefopt stands on transformers 5, and packages that others evaluate with pin 4 (rewardbench 0.1.4 pins 4.51.0). A
# policy of such a base, trained and saved here, gets other numbers there. With `rope_theta` written at the top level of config.json too,
# both releases read the same model, as the line "told twice" shows.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
for release in 5.23.0 4.51.0; do
    python3 -m venv "$folder/$release"
    "$folder/$release/bin/pip" install -q --disable-pip-version-check torch==2.13.0 transformers==$release accelerate==1.15.0
done
cd "$folder"
export HF_HUB_OFFLINE=1

cat > save.py <<'PYTHON'
import json
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

for folder, base in (("base 10000", 1e4), ("base 100000", 1e5), ("base 100000, told twice", 1e5)):
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=30,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        initializer_range=0.3,
        rope_parameters={"rope_type": "default", "rope_theta": base},
    )
    LlamaForCausalLM(config).save_pretrained(folder)
file = Path(folder, "config.json")
file.write_text(json.dumps(json.loads(file.read_text()) | {"rope_theta": base}))
PYTHON

cat > score.py <<'PYTHON'
import json
import sys

import torch
from transformers import AutoModelForCausalLM

tokens = torch.randint(3, 30, (1, 64), generator=torch.Generator().manual_seed(1))
found = {}
for folder in ("base 10000", "base 100000", "base 100000, told twice"):
    with torch.no_grad():
        told = AutoModelForCausalLM.from_pretrained(folder).eval()(input_ids=tokens).logits.log_softmax(-1)
    found[folder] = told[:, :-1].gather(-1, tokens[:, 1:, None]).sum().item()
json.dump(found, sys.stdout)
PYTHON

5.23.0/bin/python save.py 2> saving.txt
5.23.0/bin/python score.py > new.json 2> new.txt
4.51.0/bin/python score.py > old.json 2> old.txt

5.23.0/bin/python - <<'PYTHON'
import json
import sys
from pathlib import Path

new, old = (json.loads(Path(name).read_text()) for name in ("new.json", "old.json"))
for name in new:
    print(f"{name:<25} log-prob of 64 tokens: {new[name]:.3f} in 5.23.0, {old[name]:.3f} in 4.51.0")
warned = any(word in Path("old.txt").read_text().lower() for word in ("rope", "rotary", "unrecognized"))
print(f"4.51.0 says something about it: {'yes' if warned else 'no'}")
off = [abs(new[name] - old[name]) for name in new]
off.append(abs(new["base 100000"] - new["base 100000, told twice"]))
sys.exit(0 if [value > 1e-2 for value in off] == [False, True, False, False] and not warned else 1)
PYTHON
