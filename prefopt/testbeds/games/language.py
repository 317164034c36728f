"""The language model of the games: a vocabulary of their words, and a shape that a policy is trained in within minutes."""

from pathlib import Path
from typing import Any

import torch

from .gym_words import CARTS, MOVES, POLES, SQUARES

FOLDER = Path(__file__).parent / "lm"
"""The shipped weights and tokenizer, which know what legal play looks like and nothing of good play: `${games}` in recipes."""

SPECIAL = ("<pad>", "<eos>", "<unk>")
GAMES = ("lake", "cartpole", "kuhn")
POKER = ("first", "second", "jack", "queen", "king", "pass", "bet")
VOCABULARY = (*SPECIAL, *GAMES, *SQUARES, *MOVES, *CARTS, *POLES, *POKER)
"""Every token, in the order of its id."""

# transformers is imported inside functions: it takes seconds, and the words of the games do without it.


def tokenizer() -> Any:
    """One token for each word."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(VOCABULARY)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = dict(zip(("pad_token", "eos_token", "unk_token"), SPECIAL, strict=True))
    return PreTrainedTokenizerFast(tokenizer_object=words, padding_side="left", model_max_length=1024, **special)


def untrained(seed: int = 0) -> Any:
    """A Llama of two layers and 90,000 weights, which depend on the seed alone."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=len(VOCABULARY),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=1024,
        initializer_range=0.12,  # about 1/√width
        tie_word_embeddings=True,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=None,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlamaForCausalLM(config)
