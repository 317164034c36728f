"""What both sides are measured on: a small Llama, a tokenizer of words, dialogue-like random preferences, a rule as reward.

The real model and its data are in people.py.
"""

import json
import math
import random
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

Pair = dict[str, str]

SPREAD = 0.6
"""Of the logarithm of a length."""

SIZES = {"1M": (128, 384, 4), "7M": (256, 768, 6), "20M": (384, 1152, 9), "60M": (640, 1920, 12)}
"""Width, width of the MLP and layers; the names are near the number of weights for a vocabulary of 8,000."""


def tokenizer(vocabulary: int = 8000) -> PreTrainedTokenizerFast:
    """Words w0, w1, …, and three special ones."""
    words = {f"w{i}": i for i in range(vocabulary - 3)}
    special = {"<pad>": vocabulary - 3, "<eos>": vocabulary - 2, "<unk>": vocabulary - 1}
    core = Tokenizer(models.WordLevel(words | special, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>")


def preferences(n: int = 128, *arguments: int) -> list[dict]:
    """The same rows as `each_preference`, all at once."""
    return list(each_preference(n, *arguments))


def each_preference(
    n: int = 128, seed: int = 0, prompt: int = 120, completion: int = 60, vocabulary: int = 8000, completions: int = 2
) -> Iterator[dict]:
    """n rows: pairs, or ranked lists of more completions. Lengths are log-normal around these, and within 4 and 400 tokens
    at the default ones."""
    rng = random.Random(seed)

    def text(around: int, longest: int) -> str:
        length = max(4, min(longest, int(rng.lognormvariate(math.log(around), SPREAD))))
        return " ".join(f"w{rng.randrange(vocabulary - 3)}" for _ in range(length))

    for _ in range(n):
        row: dict = {"prompt": text(prompt, prompt * 10 // 3)}
        answers = [" " + text(completion, completion * 20 // 3) for _ in range(completions)]
        if completions == 2:
            row |= {"chosen": answers[0], "rejected": answers[1]}
        else:
            row |= {"completions": answers, "scores": [float(-k) for k in range(completions)]}
        yield row


def model(size: str = "7M", vocabulary: int = 8000, seed: int = 0) -> LlamaForCausalLM:
    """A Llama with tied embeddings, fp32."""
    torch.manual_seed(seed)
    width, inner, layers = SIZES[size]
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=vocabulary,
            hidden_size=width,
            intermediate_size=inner,
            num_hidden_layers=layers,
            num_attention_heads=width // 64,
            num_key_value_heads=width // 64,
            max_position_embeddings=4096,
            tie_word_embeddings=True,
            pad_token_id=vocabulary - 3,
            eos_token_id=vocabulary - 2,
            bos_token_id=vocabulary - 2,
        )
    )


def saved_model(folder: Path, size: str = "7M", vocabulary: int = 8000) -> Path:
    """Model and tokenizer on disk, made once."""
    place = folder / f"model-{size}-{vocabulary}"
    if not (place / "tokenizer.json").exists():
        model(size, vocabulary).save_pretrained(place)
        tokenizer(vocabulary).save_pretrained(place)
    return place


def saved_rows(folder: Path, rows: Iterable[dict], name: str) -> Path:
    """Rows as JSONL, one after another, so that memory which is measured later does not have them in it."""
    file = folder / f"{name}.jsonl"
    with file.open("w") as opened:
        opened.writelines(json.dumps(row) + "\n" for row in rows)
    return file


def rows_of(spec: dict) -> Iterator[dict]:
    """The rows of a measurement."""
    if spec.get("data", "words") != "words":
        from people import ROWS, assets_of

        return ROWS[spec["data"]](assets_of(spec), spec)
    names = ("prompt", "completion", "vocabulary", "completions")
    return each_preference(spec["pairs"], **{name: spec[name] for name in names if name in spec})


def model_of(spec: dict, folder: Path) -> Path:
    """The folder of a measurement's model."""
    if spec.get("data", "words") != "words":
        from people import MODEL, assets_of

        return assets_of(spec) / MODEL
    return saved_model(folder, spec.get("size", "7M"), spec.get("vocabulary", 8000))


def order(pairs: int, batch: int, steps: int, by_length: Sequence[int] = ()) -> list[int]:
    """Row numbers as prefopt's batches take them; each batch in order of length, for a trainer whose own batches are parts."""
    from prefopt.data.ordering import Shuffled

    shuffled = Shuffled(pairs, 0)
    batches = [list(shuffled.take(batch)) for _ in range(steps)]
    return [row for part in batches for row in (sorted(part, key=by_length.__getitem__) if by_length else part)]


def distinct_words(prompts: Sequence, completions: Sequence[Sequence[str]], rows: Sequence) -> list[list[float]]:
    """The rule of the group benchmark, as prefopt calls it: how many different words."""
    return [[float(len(set(text.split()))) for text in texts] for texts in completions]
