"""The models of the small worlds: tokenizers of whole words, and Llamas of two layers whose weights depend on a seed alone."""

from collections.abc import Sequence
from typing import Any

import torch

SPECIAL = ("<pad>", "<eos>", "<unk>")
"""The first three tokens of every vocabulary."""

# transformers is imported inside functions: the worlds do without it, and it takes seconds.


def word_tokenizer(vocabulary: Sequence[str], positions: int, apart: str | None = None, **settings: Any) -> Any:
    """One token for each word.

    Args:
        vocabulary: every token in the order of its id, those of `SPECIAL` first.
        positions: of the model.
        apart: a regular expression of what is a token with or without spaces around it; None is nothing.
        settings: of the tokenizer, such as `chat_template`.
    """
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(vocabulary)}, unk_token="<unk>"))
    blanks = pre_tokenizers.WhitespaceSplit()
    splits = [blanks] if apart is None else [blanks, pre_tokenizers.Split(Regex(apart), "isolated")]
    words.pre_tokenizer = splits[0] if apart is None else pre_tokenizers.Sequence(splits)
    special = dict(zip(("pad_token", "eos_token", "unk_token"), SPECIAL, strict=True))
    return PreTrainedTokenizerFast(
        tokenizer_object=words, padding_side="left", model_max_length=positions, **special, **settings
    )


def untrained_llama(tokens: int, width: int, inner: int, positions: int, spread: float, seed: int) -> Any:
    """Two layers, the fewest that can copy what stands behind something read before, and four heads.

    Args:
        tokens: of the vocabulary.
        width: of the hidden states.
        inner: width inside an MLP.
        positions: tokens that it can read.
        spread: standard deviation of the weights, about 1/√width; the default of .02 is for wide models, and learns far slower.
        seed: of the weights.
    """
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=tokens,
        hidden_size=width,
        intermediate_size=inner,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=positions,
        initializer_range=spread,
        tie_word_embeddings=True,
        pad_token_id=SPECIAL.index("<pad>"),
        eos_token_id=SPECIAL.index("<eos>"),
        bos_token_id=None,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlamaForCausalLM(config)
