"""A model, a tokenizer and data small enough to train in a second."""

import json
import random
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

WORDS = 57
CHAT = (
    "{% for m in messages %}{{ m['role'] }} {{ m['content'] }} {% endfor %}{% if add_generation_prompt %}w0 {% endif %}"
)


def tiny_model(folder: Path, chat: bool = False) -> Path:
    """A Llama of two layers on a vocabulary of `w0` … `w56`, with a chat template or without."""
    vocabulary = {f"w{i}": i for i in range(WORDS)} | {"<pad>": WORDS, "<eos>": WORDS + 1, "<unk>": WORDS + 2}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="<pad>",
        eos_token="<eos>",
        unk_token="<unk>",
        chat_template=CHAT if chat else None,
    )
    config = LlamaConfig(
        vocab_size=WORDS + 3,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=64,
        pad_token_id=WORDS,
        eos_token_id=WORDS + 1,
        bos_token_id=None,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def tiny_pairs(file: Path, rows: int = 40) -> Path:
    """Pairs whose better completion ends in w1."""
    draw = random.Random(0)

    def text(most: int) -> str:
        return " ".join(f"w{draw.randrange(WORDS)}" for _ in range(draw.randint(2, most)))

    lines = [{"prompt": text(5), "chosen": f" {text(4)} w1", "rejected": f" {text(5)}"} for _ in range(rows)]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return file


def tiny_recipe(folder: Path, model: Path, data: Path, objective: str = "DPO", **more: str) -> Path:
    """A recipe file of four steps; `more` replaces whole sections by YAML."""
    sections = {
        "policy": f"{{model: {model}}}",
        "source": f"{{data: {data}}}",
        "objective": objective,
        "train": "{steps: 4, batch_size: 8, lr: 1e-3, threads: 1}",
        "evaluate": "{prompts: 3, sampling: {max_tokens: 4}}",
        "track": f"{{folder: {folder / 'runs'}}}",
    } | more
    file = folder / "recipe.yaml"
    file.write_text("".join(f"{name}: {value}\n" for name, value in sections.items()))
    return file
