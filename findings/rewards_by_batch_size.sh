#!/usr/bin/env bash
# Seen in rewardbench 0.1.4 (transformers 4.51.0, which it pins; torch 2.13.0).
#
# To score with a sequence classifier, the command `rewardbench` sets the tokenizer to pad on the left, whatever side the tokenizer's
# folder names. BERT counts its positions from the first column, padding included, and no position ids are passed along. So a text that is
# padded stands at later positions than it does alone: its reward depends on the longest text of its batch, and so on `--batch-size`
# (8 unless told) and on the order of the rows. The attention mask does not undo it. Nothing is raised or logged. With padding on the
# right, the same pipeline gives each text the reward that it has alone.
#
# Why it matters here: prefopt's reward models can be small encoders, and this package is what their accuracy is compared with. A
# difference between the two may be the padding alone; to compare, run the package one row at a time.
#
# The script runs the package's own function behind the command, on rows of its own. One thing is replaced: the package moves its inputs to
# "cuda" wherever it runs, and here they stay on the CPU. Packages that it requires and does not import on the way are not installed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check setuptools==80.10.2 torch==2.13.0 transformers==4.51.0 accelerate==1.15.0 \
    datasets==5.0.1 huggingface-hub==0.36.2 fschat==0.2.36 trl==0.19.1 wandb==0.31.0 pandas==3.1.1 sentencepiece==0.2.3
"$folder/venv/bin/pip" install -q --disable-pip-version-check --no-deps rewardbench==0.1.4
cd "$folder"
changed=0
HF_HOME="$folder/cache" HF_HUB_OFFLINE=1 WANDB_MODE=disabled "$folder/venv/bin/python" - <<'PYTHON' 2> "$folder/warnings.txt" > "$folder/log.txt" || changed=1
import json
import sys
from pathlib import Path

import torch
from rewardbench.models.pipeline import RewardBenchPipeline
from rewardbench.rewardbench import Args, rewardbench
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import AutoTokenizer, BatchEncoding, BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "good", "film", "and", "long", "one"]
words = Tokenizer(models.WordLevel({word: index for index, word in enumerate(WORDS)}, unk_token="[UNK]"))
words.pre_tokenizer = pre_tokenizers.Whitespace()
words.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
tokenizer = PreTrainedTokenizerFast(
    tokenizer_object=words, pad_token="[PAD]", unk_token="[UNK]", padding_side="right", model_input_names=["input_ids", "attention_mask"]
)
tokenizer.chat_template = "{% for message in messages %}{{ message['content'] }} {% endfor %}"
tokenizer.save_pretrained("reward")
torch.manual_seed(0)
config = BertConfig(
    vocab_size=len(WORDS),
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=2,
    max_position_embeddings=64,
    num_labels=1,
    initializer_range=0.3,
)
BertForSequenceClassification(config).save_pretrained("reward")

answers = ["a good one", "a good film and a long one and a good one"]
rows = [[{"role": "user", "content": "film"}, {"role": "assistant", "content": answer}] for answer in answers]
Path("rows.jsonl").write_text("".join(json.dumps({"messages": row}) + "\n" for row in rows))

to = BatchEncoding.to
BatchEncoding.to = lambda self, device: to(self, "cpu")


def rewards(batch_size):
    """The rewards of the two rows, as the package's own command writes them."""
    settings = {"load_json": True, "not_quantized": True, "torch_dtype": "float32", "output_dir": f"{batch_size}/"}
    rewardbench(Args(dataset="rows.jsonl", model="reward", batch_size=batch_size, **settings))
    written = [json.loads(line) for line in Path(f"{batch_size}/reward_outputs.jsonl").read_text().splitlines()]
    return [row["results"] for row in written], [row["text"] for row in written]


(alone, texts), (together, _) = rewards(1), rewards(2)
model = BertForSequenceClassification.from_pretrained("reward")
right = RewardBenchPipeline("text-classification", model, AutoTokenizer.from_pretrained("reward"))
padded_right = right(texts, truncation=False, padding=True).flatten().tolist()

with open("seen.txt", "w") as seen:
    for name, found in (("batch size 1", alone), ("batch size 2", together), ("both at once, padded right", padded_right)):
        print(f"{name:<27} reward of the short text {found[0]:.4f}, of the long text {found[1]:.4f}", file=seen)


def far(one, other):
    return [abs(a - b) > 1e-2 for a, b in zip(one, other)]


sys.exit(0 if far(alone, together) == [True, False] and far(alone, padded_right) == [False, False] else 1)
PYTHON
cat "$folder/seen.txt" || tail -n 3 "$folder/warnings.txt"
exit $changed
