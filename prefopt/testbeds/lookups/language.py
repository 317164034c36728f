"""The LM of the worlds before it has learnt anything: `python -m prefopt.testbeds.lookups.language` writes its folder."""

from pathlib import Path
from typing import Any

import torch

from prefopt.testbeds.word_models import SPECIAL, untrained_llama, word_tokenizer

from . import world

FOLDER = Path(__file__).parent / "lm"
"""Weights and tokenizer, a Hugging Face folder, `${lookups}` in recipes."""

TAGS = tuple(f"<{slash}{tag}>" for tag in ("think", "search", "result", "answer") for slash in ("", "/"))

ONE_AFTER_ANOTHER = "{% for message in messages %}{{ message.content }}{% endfor %}"
"""The chat template: a conversation is the text of its turns, so that episodes with turns and episodes as one text are the same."""


def vocabulary() -> tuple[str, ...]:
    """Every token, in the order of its id."""
    sentences = [*world.ASKED, *(relation.fact for relation in world.RELATIONS), "I look for I know it"]
    words = {word for sentence in sentences for word in sentence.split() if not word.startswith("{")}
    names = {*world.PEOPLE, *world.TOWNS, *world.COUNTRIES, *world.THINGS}
    return (*SPECIAL, *TAGS, *sorted(words), *sorted(names))


def tokenizer() -> Any:
    """A word-level tokenizer of the vocabulary: a token for each word, tag and mark."""
    return word_tokenizer(
        vocabulary(), 128, r"</?\w+>", clean_up_tokenization_spaces=False, chat_template=ONE_AFTER_ANOTHER
    )


def untrained(seed: int = 0) -> Any:
    """The LM: .36M parameters, which depend on the seed alone."""
    return untrained_llama(len(vocabulary()), width=128, inner=256, positions=128, spread=0.08, seed=seed)


def write(folder: Path = FOLDER) -> None:
    """Put the untrained weights and the tokenizer into a folder."""
    untrained().to(torch.bfloat16).save_pretrained(folder)  # nothing is lost by half the digits of random numbers
    tokenizer().save_pretrained(folder)


if __name__ == "__main__":
    write()
