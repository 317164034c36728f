"""The LM of the worlds before it has learnt anything: `python -m prefopt.testbeds.lookups.language` writes its folder."""

from pathlib import Path
from typing import Any

import torch

from . import world

FOLDER = Path(__file__).parent / "lm"
"""Weights and tokenizer, a Hugging Face folder, `${lookups}` in recipes."""

SPECIAL = ("<pad>", "<eos>", "<unk>")
TAGS = tuple(f"<{slash}{tag}>" for tag in ("think", "search", "result", "answer") for slash in ("", "/"))

ONE_AFTER_ANOTHER = "{% for message in messages %}{{ message.content }}{% endfor %}"
"""The chat template: a conversation is the text of its turns, so that episodes with turns and episodes as one text are the same."""


def vocabulary() -> tuple[str, ...]:
    """Every token, in the order of its id."""
    sentences = [*world.ASKED, *(relation.fact for relation in world.RELATIONS), "I look for I know it"]
    words = {word for sentence in sentences for word in sentence.split() if not word.startswith("{")}
    names = {*world.PEOPLE, *world.TOWNS, *world.COUNTRIES, *world.THINGS}
    return (*SPECIAL, *TAGS, *sorted(words), *sorted(names))


# transformers is imported inside functions: the worlds do without it, and it takes seconds.


def tokenizer() -> Any:
    """A word-level tokenizer of the vocabulary: a token for each word, tag and mark."""
    from tokenizers import Regex, Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Sequence, Split, WhitespaceSplit
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(WordLevel({word: i for i, word in enumerate(vocabulary())}, unk_token="<unk>"))
    words.pre_tokenizer = Sequence([WhitespaceSplit(), Split(Regex(r"</?\w+>"), "isolated")])
    return PreTrainedTokenizerFast(
        tokenizer_object=words,
        pad_token="<pad>",
        eos_token="<eos>",
        unk_token="<unk>",
        padding_side="left",
        clean_up_tokenization_spaces=False,
        model_max_length=128,
        chat_template=ONE_AFTER_ANOTHER,
    )


def untrained(seed: int = 0) -> Any:
    """The LM: two layers, the fewest that can copy what stands behind something read before; weights depend on the seed alone."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=len(vocabulary()),
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=128,
        initializer_range=0.08,  # about 1/√width, as in the pocket LM
        tie_word_embeddings=True,
        pad_token_id=SPECIAL.index("<pad>"),
        eos_token_id=SPECIAL.index("<eos>"),
        bos_token_id=None,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlamaForCausalLM(config)


def write(folder: Path = FOLDER) -> None:
    """Put the untrained weights and the tokenizer into a folder."""
    untrained().to(torch.bfloat16).save_pretrained(folder)  # nothing is lost by half the digits of random numbers
    tokenizer().save_pretrained(folder)


if __name__ == "__main__":
    write()
