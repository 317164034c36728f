#!/usr/bin/env bash
# Seen in trl 1.16.0 (transformers 5.23.0, torch 2.13.0).
#
# `GRPOTrainer` with `tools` answers a call of a tool that there is not, or a tool that raises, with a message about the error, and the
# model has another turn to put it right; `tools/failure_frequency` counts it. A call whose JSON cannot be read is another matter: the
# whole turn is then plain text, which is the final answer that reward functions see. Calls of the same turn that are sound are not made
# either, and the step's metrics say that nothing failed: `tools/call_frequency` and `tools/failure_frequency` are both 0. So a policy
# that begins to write broken JSON looks like one that has ceased to call, with the best failure rate there is.
#
# Why it matters here: prefopt's environment `Tools` answers a call that cannot be read with an error, makes those beside it, and counts
# it as `calls_unparsed`. Episodes of the two are otherwise in that one case (the environment of TRL's form ends as TRL does), and a rate of
# failures from TRL's log is not comparable with one from here.
#
# The model is scripted, so that it is known what it writes: its weights are random, and `generate` returns the script. Everything else
# is the trainer's own, with the chat template of Qwen3 that ships with TRL.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check torch==2.13.0 trl==1.16.0 transformers==5.23.0 jmespath==1.0.1
cd "$folder"
changed=0
HF_HUB_OFFLINE=1 "$folder/venv/bin/python" - <<'PYTHON' 2> "$folder/warnings.txt" > "$folder/log.txt" || changed=1
import sys
from pathlib import Path

import torch
import trl
from datasets import Dataset
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from trl import GRPOConfig, GRPOTrainer

alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
letters = Tokenizer(models.BPE(vocab={letter: number for number, letter in enumerate(alphabet)}, merges=[]))
letters.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
letters.decoder = decoders.ByteLevel()
tokenizer = PreTrainedTokenizerFast(
    tokenizer_object=letters, eos_token="<|im_end|>", pad_token="<|endoftext|>", additional_special_tokens=["<|im_start|>"]
)
tokenizer.chat_template = (Path(trl.__file__).parent / "chat_templates" / "qwen3.jinja").read_text()
torch.manual_seed(0)
size = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "max_position_embeddings": 4096}
config = LlamaConfig(vocab_size=len(tokenizer), **size)


class Scripted(LlamaForCausalLM):
    """Writes what the script says, and an answer once it has seen a result."""

    script = ""

    def generate(self, input_ids, **settings):
        text = "3" if "<tool_response>" in tokenizer.decode(input_ids[0]) else self.script
        ids = torch.tensor([tokenizer(text)["input_ids"] + [tokenizer.eos_token_id]] * len(input_ids))
        return torch.cat([input_ids, ids], dim=1)


def trained(script):
    """Of one step: how often the tool was called, the roles of an episode, and what the trainer logged of calls and failures."""
    asked, episodes = [], []

    def price(item: str) -> int:
        """What a thing costs.

        Args:
            item: The thing.
        """
        asked.append(item)
        return len(item)

    def reward(completions, **row):
        episodes.extend(completions)
        return [0.0] * len(completions)

    Scripted.script = script
    batch = {"per_device_train_batch_size": 2, "num_generations": 2, "max_completion_length": 512}
    settings = GRPOConfig(output_dir="out", max_steps=1, logging_steps=1, use_cpu=True, bf16=False, report_to=[], **batch)
    rows = Dataset.from_list([{"prompt": [{"role": "user", "content": "What is tea?"}]}] * 2)
    trainer = GRPOTrainer(Scripted(config), reward, args=settings, train_dataset=rows, processing_class=tokenizer, tools=[price])
    trainer.train()
    (logged,) = [line for line in trainer.state.log_history if "tools/call_frequency" in line]
    roles = " ".join(message["role"] for message in episodes[0])
    return len(asked) // 2, roles, logged["tools/call_frequency"], logged["tools/failure_frequency"]


def call(name="price", end="}"):
    return f'<tool_call>\n{{"name": "{name}", "arguments": {{"item": "tea"}}{end}\n</tool_call>'


scripts = {
    "two calls": f"{call()}\n{call()}",
    "a tool that there is not": call("cost"),
    "a call without its last brace": call(end=""),
    "a call, and one without its last brace": f"{call()}\n{call(end='')}",
}
found = {name: trained(script) for name, script in scripts.items()}
with open("seen.txt", "w") as seen:
    for name, (calls, roles, frequency, failures) in found.items():
        print(f"{name:<38}  tool ran {calls}×  episode: {roles:<29}  calls {frequency}, failures {failures}", file=seen)
expected = [(2, "assistant tool tool assistant", 2.0, 0.0), (0, "assistant tool assistant", 1.0, 1.0)]
expected += [(0, "assistant", 0.0, 0.0)] * 2
sys.exit(0 if list(found.values()) == expected else 1)
PYTHON
cat "$folder/seen.txt" || tail -n 3 "$folder/warnings.txt"
exit $changed
