"""The words of the pocket world and what they are worth.

Everything that the grammar, the reward and the tokenizer know about words is in these tables. A valence is in (−1, 1). A
modifier is one number m, applied by `bend`.
"""

import math
import re
from collections.abc import Mapping
from functools import lru_cache

Valences = Mapping[str, float]

NOUNS: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "hotel": {
        "person": ("receptionist", "manager", "porter"),
        "place": ("room", "lobby", "pool"),
        "thing": ("breakfast", "bed"),
    },
    "restaurant": {
        "person": ("waiter", "chef"),
        "place": ("terrace", "kitchen"),
        "thing": ("menu", "soup", "dessert", "wine"),
    },
    "film": {
        "person": ("actor", "director", "villain"),
        "place": ("castle",),
        "thing": ("plot", "ending", "dialogue", "trailer"),
    },
    "book": {
        "person": ("author", "narrator", "hero"),
        "place": ("village",),
        "thing": ("story", "style", "chapter", "cover"),
    },
    "museum": {
        "person": ("guide", "curator", "guard"),
        "place": ("gallery", "garden", "shop"),
        "thing": ("exhibition", "catalogue"),
    },
    "concert": {
        "person": ("singer", "drummer", "pianist"),
        "place": ("stage", "hall"),
        "thing": ("sound", "encore", "ticket"),
    },
    "course": {
        "person": ("teacher", "tutor", "assistant"),
        "place": ("classroom", "library"),
        "thing": ("lecture", "exam", "homework"),
    },
    "airline": {
        "person": ("pilot", "steward", "agent"),
        "place": ("cabin", "lounge"),
        "thing": ("seat", "meal", "flight"),
    },
    "clinic": {
        "person": ("doctor", "nurse", "therapist"),
        "place": ("ward", "entrance"),
        "thing": ("treatment", "advice", "bill"),
    },
    "gym": {
        "person": ("trainer", "coach", "owner"),
        "place": ("sauna", "studio"),
        "thing": ("equipment", "timetable", "shower"),
    },
    "park": {
        "person": ("ranger", "gardener"),
        "place": ("lake", "path", "playground", "meadow"),
        "thing": ("bench", "map"),
    },
    "festival": {
        "person": ("host", "crowd", "organizer"),
        "place": ("campsite", "tent"),
        "thing": ("programme", "food", "parade"),
    },
}
"""Topic → kind → its aspects. A noun belongs to one topic: under any other it is off-topic."""

ANY: Valences = {
    "superb": 0.9,
    "excellent": 0.85,
    "wonderful": 0.8,
    "great": 0.7,
    "good": 0.55,
    "nice": 0.45,
    "pleasant": 0.4,
    "decent": 0.3,
    "fine": 0.2,
    "acceptable": 0.1,
    "forgettable": -0.2,
    "mediocre": -0.3,
    "unpleasant": -0.4,
    "disappointing": -0.5,
    "bad": -0.55,
    "poor": -0.6,
    "dreadful": -0.8,
    "terrible": -0.85,
    "awful": -0.9,
}
"""Adjectives for every noun, and for the topic itself."""

KINDS: Mapping[str, Valences] = {
    "person": {
        "brilliant": 0.8,
        "charming": 0.7,
        "kind": 0.65,
        "friendly": 0.6,
        "helpful": 0.6,
        "polite": 0.45,
        "distracted": -0.3,
        "clumsy": -0.35,
        "lazy": -0.55,
        "careless": -0.6,
        "arrogant": -0.65,
        "rude": -0.7,
        "hostile": -0.8,
    },
    "place": {
        "beautiful": 0.8,
        "spacious": 0.6,
        "cosy": 0.55,
        "clean": 0.5,
        "bright": 0.4,
        "tidy": 0.35,
        "dusty": -0.35,
        "cramped": -0.5,
        "shabby": -0.5,
        "gloomy": -0.55,
        "dirty": -0.65,
        "filthy": -0.85,
    },
    "thing": {
        "flawless": 0.85,
        "delightful": 0.75,
        "memorable": 0.65,
        "clever": 0.6,
        "generous": 0.5,
        "solid": 0.35,
        "flawed": -0.35,
        "bland": -0.45,
        "confusing": -0.5,
        "dull": -0.55,
        "overpriced": -0.6,
        "tedious": -0.65,
        "worthless": -0.85,
    },
}
"""Adjectives that go with one kind of noun only: a bed cannot be rude."""

AXES = (("quiet", "lively"), ("traditional", "modern"), ("strange", "ordinary"), ("strict", "relaxed"))
"""Pairs of adjectives whose valence depends on the topic, which is what a shift of topics shifts."""

TASTE: Mapping[str, str] = {
    "hotel": "+--+",
    "restaurant": "-+-+",
    "film": "--++",
    "book": "+++-",
    "museum": "++++",
    "concert": "-++-",
    "course": "---+",
    "airline": "+---",
    "clinic": "++--",
    "gym": "----",
    "park": "-+--",
    "festival": "+-++",
}
"""For each topic, and each axis: "+" if the first adjective is the good one."""

TASTE_VALENCE = 0.5

VERBS: Mapping[str, tuple[str, float]] = {
    "loved": ("love", 0.8),
    "admired": ("admire", 0.7),
    "enjoyed": ("enjoy", 0.6),
    "liked": ("like", 0.45),
    "disliked": ("dislike", -0.45),
    "resented": ("resent", -0.6),
    "hated": ("hate", -0.8),
}
"""Past → base form and valence, for `i loved the soup` and `i did not love the soup`."""

DEGREES: Mapping[str, float] = {
    "slightly": 0.4,
    "somewhat": 0.6,
    "fairly": 0.8,
    "really": 1.3,
    "very": 1.5,
    "extremely": 2.0,
}
NEGATIONS: Mapping[str, float] = {"not": -0.6, "never": -0.9, "hardly": -0.4}
STANCES: Mapping[str, float] = {
    "perhaps": 0.5,
    "maybe": 0.5,
    "i think that": 0.8,
    "my friend said that": 0.6,
    "i am sure that": 1.3,
    "clearly": 1.2,
    "i doubt that": -0.5,
    "i do not think that": -0.6,
    "nobody would say that": -0.8,
}
"""Modifiers of an adjective, of a clause, and of a whole statement. Stances nest."""

WHOLE = "it"
"""Speaks, like the topic's own name, of the topic as a whole."""

FUNCTION_WORDS = ("the", "was", "i", "did", "not", "and", "but", "although", ",", ".", "it", "=>")


TOKEN = re.compile(r"=>|[.,:]|[^\s.,:]+")
"""What the tokenizer makes one token: a word or a mark, with or without spaces around it."""


def tokens(text: str) -> list[str]:
    """The words and marks of a text."""
    return TOKEN.findall(text)


def bend(valence: float, modifier: float) -> float:
    """What a modifier makes of a valence; both the result and the valence are in [−1, 1].

    |m| ≤ 1 shrinks: m·v. |m| > 1 grows without ever reaching 1: sign(m·v)·(1 − (1 − |v|)^|m|). Negative m turns it round.
    """
    if abs(modifier) <= 1:
        return modifier * valence
    return math.copysign(1 - (1 - abs(valence)) ** abs(modifier), modifier * valence)


@lru_cache(maxsize=1024)
def kind_of(topic: str, noun: str) -> str | None:
    """The kind of an aspect of a topic; "whole" for the topic itself; None if the noun is off-topic."""
    if noun in (WHOLE, topic):
        return "whole"
    return next((kind for kind, nouns in NOUNS[topic].items() if noun in nouns), None)


@lru_cache(maxsize=32)
def aspects(topic: str) -> tuple[str, ...]:
    """The nouns that belong to a topic."""
    return tuple(noun for nouns in NOUNS[topic].values() for noun in nouns)


@lru_cache(maxsize=64)
def adjectives(topic: str, kind: str) -> Valences:
    """Every adjective that may be said of a kind of noun under a topic, with its valence there."""
    signs = [1 if sign == "+" else -1 for sign in TASTE[topic]]
    tastes = {a: s * TASTE_VALENCE for (a, _), s in zip(AXES, signs, strict=True)}
    tastes |= {b: -s * TASTE_VALENCE for (_, b), s in zip(AXES, signs, strict=True)}
    return {**ANY, **KINDS.get(kind, {}), **tastes}
