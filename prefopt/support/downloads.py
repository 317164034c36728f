"""What a run would have to download: noted instead of asked for, so that a recipe can be checked without a network."""

import contextlib
import re
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

from huggingface_hub import constants

HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*")
"""owner/name, of a model or a data set."""


@dataclass(frozen=True)
class Downloads:
    """Hub ids that are not on disk, in the order in which they were looked for, each once.

    Attributes:
        models: of models and their tokenizers.
        data: of data sets; their rows are missing from whatever was loaded.
    """

    models: list[str] = field(default_factory=list)
    data: list[str] = field(default_factory=list)


_noting: ContextVar[Downloads | None] = ContextVar("noting", default=None)


@contextlib.contextmanager
def noting_downloads() -> Iterator[Downloads]:
    """Within it nothing asks the hub: a hub id that is not on disk counts as found and is noted.

    Whether the hub has it, nobody can know here. What is no hub id and not on disk is refused as ever.
    """
    import datasets

    found = Downloads()
    token = _noting.set(found)
    places: list[Any] = [constants, datasets.config]
    before = [place.HF_HUB_OFFLINE for place in places]
    try:
        for place in places:  # for what is on disk, too: the libraries ask whether it is the newest
            place.HF_HUB_OFFLINE = True
        yield found
    finally:
        _noting.reset(token)
        for place, value in zip(places, before, strict=True):
            place.HF_HUB_OFFLINE = value


def note_model(name: str) -> bool:
    """Whether downloads are only noted; then this model is among them."""
    return _note(name, "models")


def note_data(name: str) -> bool:
    """Whether downloads are only noted; then this data set is among them."""
    return _note(name, "data")


def is_awaited(name: str) -> bool:
    """Whether this model was noted and can be looked into only after its download."""
    noting = _noting.get()
    return noting is not None and name in noting.models


def rows_awaited() -> bool:
    """Whether rows are missing because their data set was only noted."""
    noting = _noting.get()
    return noting is not None and bool(noting.data)


def _note(name: str, kind: str) -> bool:
    noting = _noting.get()
    if noting is None:
        return False
    names: list[str] = getattr(noting, kind)
    if name not in names:
        names.append(name)
    return True
