"""The scores of prefopt beside those of the package rewardbench on the same model and rows.

In an environment of its own, because rewardbench 0.1.4 pins transformers 4.51 (this script imports nothing of prefopt):

    python -m venv /tmp/rewardbench && /tmp/rewardbench/bin/pip install rewardbench==0.1.4
    /tmp/rewardbench/bin/python experiments/benchmarks/against_rewardbench.py reward films.jsonl RUN/policy ours.json
    /tmp/rewardbench/bin/python experiments/benchmarks/against_rewardbench.py dpo films.jsonl RUN/policy ours.json --reference MODEL

`ours.json` is what `prefopt benchmark … --out ours.json` wrote. The package's own functions do the work: its rendering of a row
(`prepare_dialogue_from_tokenizer`), its `RewardBenchPipeline`, its `DPOInference`, its count of what is right. What is changed:

- it moves inputs to "cuda" wherever it runs; here to the model's device.
- the models were trained on bare text, so the tokenizer gets a chat template that writes the turns one after another.
- rewards are read one row at a time unless --batch-size says otherwise: the package pads on the left.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from accelerate import Accelerator
from rewardbench import DPOInference
from rewardbench.models.pipeline import RewardBenchPipeline
from rewardbench.utils import calculate_scores_per_section, prepare_dialogue_from_tokenizer
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BatchEncoding,
    PreTrainedTokenizerFast,
)

PLAIN = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
Pairs = list[tuple[float, float]]


def rewards(rows: list[dict[str, Any]], folder: str, batch_size: int) -> Pairs:
    """The rewards of the bare answers, as the package's pipeline gives them."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template, tokenizer.padding_side = PLAIN, "left"
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    pipeline = RewardBenchPipeline("text-classification", model, tokenizer)
    move = BatchEncoding.to
    BatchEncoding.to = lambda self, device, **more: move(self, model.device, **more)  # type: ignore[method-assign]
    texts = [prepare_dialogue_from_tokenizer(row | {"prompt": ""}, tokenizer) for row in rows]

    def scored(name: str) -> list[float]:
        found: list[float] = []
        for start in range(0, len(texts), batch_size):
            part = [row[name] for row in texts[start : start + batch_size]]
            found += pipeline(part, truncation=False, padding=True, max_length=2048).float().flatten().tolist()
        return found

    return list(zip(scored("text_chosen"), scored("text_rejected"), strict=True))


def log_ratios(rows: list[dict[str, Any]], folder: str, reference: str, batch_size: int, bos: bool) -> Pairs:
    """The log-ratios of the answers, as the package's DPO inference gives them; without `bos` after the tokens of training."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)  # transformers 4 does not know the class that 5 names
    tokenizer.chat_template, tokenizer.pad_token = PLAIN, tokenizer.eos_token
    models = [causal(name) for name in (folder, reference)]
    dpo = DPOInference(*models, tokenizer=tokenizer, accelerator=Accelerator(cpu=True))
    found: Pairs = []
    texts = [dpo.tokenize_row(prepare_dialogue_from_tokenizer(dict(row), tokenizer)) for row in rows]
    texts = [{key: ids if bos else ids[1:] for key, ids in row.items()} for row in texts]
    for start in range(0, len(texts), batch_size):
        with torch.no_grad():
            chosen, rejected = dpo.inference_step(collated(texts[start : start + batch_size], tokenizer.pad_token_id))
        found += zip(chosen.tolist(), rejected.tolist(), strict=True)
    return found


def causal(folder: str) -> Any:
    """A language model as transformers 5 saved it: 4 does not look for the base of its rotary positions where 5 writes it."""
    config = AutoConfig.from_pretrained(folder)
    positions = json.loads((Path(folder) / "config.json").read_text()).get("rope_parameters") or {}
    config.rope_theta = positions.get("rope_theta", config.rope_theta)
    return AutoModelForCausalLM.from_pretrained(folder, config=config, torch_dtype=torch.float32)


def collated(rows: list[dict[str, Any]], padding: int) -> dict[str, torch.Tensor]:
    """A batch as TRL's DPODataCollatorWithPadding makes it, which TRL no longer has: padded on the right."""
    fill = {"input_ids": padding, "attention_mask": 0, "labels": -100}
    return {
        key: torch.nn.utils.rnn.pad_sequence(
            [torch.tensor(row[key]) for row in rows],
            batch_first=True,
            padding_value=next(value for name, value in fill.items() if key.endswith(name)),
        )
        for key in rows[0]
        if key.startswith(("chosen", "rejected"))
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=("reward", "dpo"))
    parser.add_argument("data", type=Path)
    parser.add_argument("model", help="a model's folder")
    parser.add_argument("ours", type=Path)
    parser.add_argument("--reference", help="the model that a policy is compared with")
    parser.add_argument("--batch-size", type=int, default=1)
    parser.add_argument(
        "--no-bos", action="store_true", help="without the BOS that the package puts before every prompt"
    )
    options = parser.parse_args()
    rows = [json.loads(line) for line in options.data.read_text().splitlines()]
    if options.kind == "reward":
        theirs = np.array(rewards(rows, options.model, options.batch_size))
    else:
        theirs = np.array(log_ratios(rows, options.model, options.reference, options.batch_size, not options.no_bos))
    ours = json.loads(options.ours.read_text())
    mine = np.array([row["scores"] for row in ours["rows"]])
    right = theirs[:, 0] > theirs[:, 1]  # rewardbench/rewardbench.py: 1 if chosen > rejected else 0
    subsets = np.array([row["subset"] for row in rows])
    accuracies = {name: float(right[subsets == name].mean()) for name in dict.fromkeys(subsets.tolist())}
    counts = {name: int((subsets == name).sum()) for name in accuracies}
    print(f"transformers {transformers.__version__}, batch size {options.batch_size}, {len(rows)} rows")
    print(f"largest difference of a score   {np.abs(theirs - mine).max():.2g}")
    print(f"largest difference of a margin  {np.abs(np.diff(theirs) - np.diff(mine)).max():.2g}")
    print(f"rows with another winner        {int((right != (mine[:, 0] > mine[:, 1])).sum())}")
    print(f"{'':<10} rewardbench  prefopt")
    for name, accuracy in accuracies.items():
        print(f"{name:<10} {accuracy:.6f}     {ours['subsets'][name]['value']:.6f}")
    overall = calculate_scores_per_section(counts, {"films": list(counts)}, accuracies)["films"]
    print(f"{'overall':<10} {overall:.6f}     {ours['overall']['value']:.6f}")
    sys.exit(int(abs(overall - ours["overall"]["value"]) > 1e-9))


if __name__ == "__main__":
    main()
