"""The language model of the games: a vocabulary of their words, and a shape that a policy is trained in within minutes."""

from pathlib import Path
from typing import Any

from prefopt.testbeds.word_models import SPECIAL, untrained_llama, word_tokenizer

from .gym_words import CARTS, MOVES, POLES, SQUARES

FOLDER = Path(__file__).parent / "lm"
"""The shipped weights and tokenizer, which know what legal play looks like and nothing of good play: `${games}` in recipes."""

GAMES = ("lake", "cartpole", "kuhn")
POKER = ("first", "second", "jack", "queen", "king", "pass", "bet")
VOCABULARY = (*SPECIAL, *GAMES, *SQUARES, *MOVES, *CARTS, *POLES, *POKER)
"""Every token, in the order of its id."""


def tokenizer() -> Any:
    """One token for each word."""
    return word_tokenizer(VOCABULARY, 1024)


def untrained(seed: int = 0) -> Any:
    """A Llama of two layers and 90,000 weights, which depend on the seed alone."""
    return untrained_llama(len(VOCABULARY), width=64, inner=128, positions=1024, spread=0.12, seed=seed)
