"""The pocket LM: its vocabulary, tokenizer and shape, and sampling from the shipped weights."""

import json
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from prefopt.support.fingerprints import fingerprint_code, fingerprint_texts, fingerprint_weights
from prefopt.support.sharing import shared_text
from prefopt.support.threads import PhaseThreads, threads_restored, use
from prefopt.testbeds.word_models import SPECIAL, untrained_llama, word_tokenizer

from . import lexicon, requests

if TYPE_CHECKING:
    from prefopt.policy.policy import Policy

FOLDER = Path(__file__).parent / "lm"
"""The shipped weights and tokenizer: a Hugging Face folder, `${pocket}` in recipes."""

LABELS = ("good", "fine", "bad")
"""What follows `=>` on a rating line."""

MAX_TOKENS = 48
"""Longest sample; 99.5% of the opinions that the LM learns from are shorter."""


def vocabulary() -> tuple[str, ...]:
    """Every token, in the order of its id."""
    words = {*LABELS, *lexicon.ANY, *lexicon.DEGREES, *lexicon.NEGATIONS, *lexicon.FUNCTION_WORDS}
    words |= {adjective for adjectives in lexicon.KINDS.values() for adjective in adjectives}
    words |= {adjective for axis in lexicon.AXES for adjective in axis}
    words |= {form for past, (base, _) in lexicon.VERBS.items() for form in (past, base)}
    words |= {word for phrase in lexicon.STANCES for word in lexicon.tokens(phrase)}
    words |= {word for request in requests.pool("all") for word in lexicon.tokens(str(request))}
    return (*SPECIAL, *sorted(words))


def tokenizer() -> Any:
    """A word-level tokenizer of the vocabulary: one token for each word and mark, with or without spaces around it."""
    return word_tokenizer(vocabulary(), 256, "=>|[.,:]", clean_up_tokenization_spaces=False)


def untrained(seed: int = 0) -> Any:
    """The LM before training: 0.9M parameters, which depend on the seed alone."""
    return untrained_llama(len(vocabulary()), width=192, inner=512, positions=256, spread=0.06, seed=seed)


@lru_cache(maxsize=4)
def load(folder: str | Path = FOLDER) -> "Policy":
    """The shipped LM, or another model with its tokenizer; loaded once, and not to be trained."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from prefopt.policy.policy import Policy

    return Policy(AutoModelForCausalLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder))


def sample(
    texts: Sequence[str], completions: int, seeds: Sequence[int], temperature: float = 1.0, folder: str | Path = FOLDER
) -> list[list[str]]:
    """`completions` samples of each prompt; those of one prompt depend on it and its seed, not on the others.

    The last few answers are kept, so that the runs of a study do not draw the same data again, and its processes share them.

    Args:
        texts: B prompts.
        completions: K.
        seeds: B of them, 63 bits: the noise of each prompt's samples.
        temperature: 0 is greedy.
        folder: of the model.
    """
    return [list(group) for group in _sampled(tuple(texts), completions, tuple(seeds), temperature, folder)]


@lru_cache(maxsize=8)
def _sampled(
    texts: tuple[str, ...], completions: int, seeds: tuple[int, ...], temperature: float, folder: str | Path
) -> list[list[str]]:
    if not texts:
        return []
    model = load(folder)
    drawn_by = (fingerprint_weights(model), fingerprint_code(), torch.__version__, MAX_TOKENS)
    key = fingerprint_texts(map(repr, (*drawn_by, texts, completions, seeds, temperature)))
    answer = shared_text(
        "samples", key, lambda: json.dumps(_drawn(model, texts, completions, seeds, temperature)), _is_json
    )
    groups: list[list[str]] = json.loads(answer)
    return groups


def _is_json(text: str) -> bool:
    try:
        return bool(json.loads(text))
    except ValueError:
        return False


def _drawn(
    model: "Policy", texts: Sequence[str], completions: int, seeds: Sequence[int], temperature: float
) -> list[list[str]]:
    from prefopt.policy.decode.sampler import TransformersSampler
    from prefopt.recipe import Sampling

    assert model.tokenizer is not None
    with threads_restored():
        use(PhaseThreads.alike(1))  # the fastest for a model as small, and the same rows whatever a run computes with
        drawn = TransformersSampler(batch_size=512)(
            model,
            [model.tokenizer(text)["input_ids"] for text in texts],
            completions,
            Sampling(temperature=temperature, max_tokens=MAX_TOKENS),
            torch.tensor(seeds),
        )
    ids = drawn.completion_ids.masked_fill(~drawn.mask, SPECIAL.index("<pad>")).flatten(0, 1)
    decoded = model.tokenizer.batch_decode(ids, skip_special_tokens=True)
    return [decoded[i : i + completions] for i in range(0, len(decoded), completions)]
