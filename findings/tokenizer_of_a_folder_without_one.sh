#!/usr/bin/env bash
# Seen in transformers 5.23.0 (tokenizers as it requires, torch 2.13.0).
#
# A folder that holds a model and no tokenizer file at all: `AutoTokenizer.from_pretrained(folder)` follows config.json's model type. For a
# Llama model it raises. For BERT and GPT-2 it returns a tokenizer without a word, whose vocabulary is its special tokens alone: every
# text becomes unknown tokens, or nothing at all.
#
# Why it matters here: the run folder or checkpoint of a reward model or critic that was saved without its tokenizer is scored on
# texts that it never saw. Every number comes out finite, and all are about the same text. prefopt refuses such a tokenizer.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check torch==2.13.0 transformers==5.23.0
cd "$folder"
HF_HUB_OFFLINE=1 "$folder/venv/bin/python" - <<'PYTHON' 2> "$folder/warnings.txt"
import sys

from transformers import AutoTokenizer, BertConfig, BertModel, GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

models = {
    "llama": LlamaForCausalLM(
        LlamaConfig(vocab_size=90, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2)
    ),
    "bert": BertModel(
        BertConfig(vocab_size=90, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2)
    ),
    "gpt2": GPT2LMHeadModel(GPT2Config(vocab_size=90, n_embd=16, n_layer=1, n_head=2)),
}
seen = {}
for name, model in models.items():
    model.save_pretrained(name)
    try:
        tokenizer = AutoTokenizer.from_pretrained(name)
    except Exception as error:
        seen[name] = "raises"
        print(f"{name:<6} raises {type(error).__name__}")
        continue
    words = tokenizer("a good film", add_special_tokens=False)["input_ids"]
    seen[name] = "special tokens only" if set(tokenizer.get_vocab()) <= set(tokenizer.all_special_tokens) else "more"
    print(f"{name:<6} {type(tokenizer).__name__}: {len(tokenizer)} tokens, {seen[name]}; 'a good film' is {words}")
sys.exit(0 if seen == {"llama": "raises", "bert": "special tokens only", "gpt2": "special tokens only"} else 1)
PYTHON
