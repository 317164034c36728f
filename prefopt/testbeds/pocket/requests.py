"""What prompts ask for, `short review of the hotel by a friend , mainly the room :`, and which of them are held out."""

import hashlib
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from random import Random
from typing import Literal

from prefopt.support.errors import PrefoptError, nearest

from . import lexicon

Split = Literal["train", "validation", "test", "all"]
Topics = Literal["train", "test", "all"]

MANNERS = ("", "short", "detailed", "honest", "quick", "personal")
GENRES = ("review", "opinion", "verdict", "note", "report", "comment")
WRITERS = ("", "by a visitor", "by a friend")
HELD_OUT_TOPICS = ("clinic", "gym", "festival")
TOPICS: dict[str, tuple[str, ...]] = {
    "train": tuple(topic for topic in lexicon.NOUNS if topic not in HELD_OUT_TOPICS),
    "test": HELD_OUT_TOPICS,
    "all": tuple(lexicon.NOUNS),
}
SHARES = {"train": range(15), "validation": range(15, 17), "test": range(17, 20), "all": range(20)}
"""Twentieths of the prompts, by a hash of the text."""


@dataclass(frozen=True)
class Request:
    """What a prompt asks for: a topic, perhaps one aspect of it above all, perhaps in few words."""

    topic: str
    hint: str = ""
    manner: str = ""
    genre: str = "review"
    writer: str = ""

    def __str__(self) -> str:
        hint = f", mainly the {self.hint}" if self.hint else ""
        return " ".join(filter(None, (self.manner, self.genre, "of the", self.topic, self.writer, hint, ": ")))

    @property
    def length(self) -> str:
        """How long an opinion should be: "short", "usual" or "detailed"."""
        return {"short": "short", "quick": "short", "detailed": "detailed"}.get(self.manner, "usual")


@lru_cache(maxsize=1)
def _requests() -> dict[tuple[str, ...], Request]:
    """Every prompt there is, by its words."""
    every = (
        Request(topic, hint, manner, genre, writer)
        for topic in lexicon.NOUNS
        for hint, manner, genre, writer in itertools.product(("", *lexicon.aspects(topic)), MANNERS, GENRES, WRITERS)
    )
    return {tuple(lexicon.tokens(str(request))): request for request in every}


def read(prompt: str) -> Request:
    """What a prompt asks for.

    Raises:
        PrefoptError: it is not a prompt of the pocket world.
    """
    request = _requests().get(tuple(lexicon.tokens(prompt)))
    if request is None:
        raise PrefoptError(
            f"{prompt!r} is not a prompt of the pocket world. They look like 'review of the hotel :' or 'short note of "
            "the film by a friend , mainly the plot :'; see docs/pocket.md."
        )
    return request


@lru_cache(maxsize=12)
def pool(split: Split = "train", topics: Topics = "all") -> tuple[Request, ...]:
    """All prompts of a split and of a set of topics. A prompt is in one split only, whatever the seed.

    Raises:
        PrefoptError: no such split, or no such set of topics.
    """
    for name, value, known in (("split", split, SHARES), ("topics", topics, TOPICS)):
        if value not in known:
            raise PrefoptError(f"{name} is one of {', '.join(known)}; got {value!r}.{nearest(str(value), known)}")
    return tuple(r for r in _requests().values() if r.topic in TOPICS[topics] and _twentieth(str(r)) in SHARES[split])


def _twentieth(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4]) % 20


def draw(n: int, seed: int, split: Split = "train", topics: Topics = "all") -> Iterator[Request]:
    """`n` prompts in an order that depends on the seed; none comes twice before all have come once."""
    random = Random(f"prompts {seed}")
    asked = list(pool(split, topics))
    while n > 0:
        random.shuffle(asked)
        yield from asked[:n]
        n -= len(asked)
