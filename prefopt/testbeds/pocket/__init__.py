"""The pocket world: short opinions with a known reward, and a small LM that writes them. docs/pocket.md says more."""

from .data import (
    corpus,
    demonstrations,
    preferences,
    prompts,
    proxy_labels,
    rankings,
    ratings,
    segments,
    steps,
)
from .reward import compared, gold, wordiness

__all__ = [
    "compared",
    "corpus",
    "demonstrations",
    "gold",
    "preferences",
    "prompts",
    "proxy_labels",
    "rankings",
    "ratings",
    "segments",
    "steps",
    "wordiness",
]
