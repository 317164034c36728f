"""Recording what a run would have to download instead of downloading it, so that a recipe can be checked without a network."""

import contextlib
import re
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from huggingface_hub import constants

from prefopt.support.errors import PrefoptError, nearest

HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*")
"""owner/name, of a model or a data set."""

HOW_TO_GET_A_MODEL = (
    "give a folder with config.json and weights (from save_pretrained), a finished run folder, a checkpoint of a run, "
    "or a hub id such as HuggingFaceTB/SmolLM2-135M-Instruct; ${pocket} is the small model that comes with prefopt"
)


def no_model(names: Sequence[str]) -> PrefoptError:
    """The error that none of these models is there: how to get one, and the nearest folder."""
    places = [Path(name).expanduser() for name in names]
    beside = [str(one) for place in places if place.parent.is_dir() for one in place.parent.iterdir() if one.is_dir()]
    near = next(filter(None, (nearest(str(place), beside) for place in places if not place.exists())), "")
    return PrefoptError(f"no model at {' or '.join(names)}: {HOW_TO_GET_A_MODEL}.{near}")


@dataclass(frozen=True)
class Downloads:
    """Hub ids that are not on disk, in the order in which they were needed, each once.

    Attributes:
        models: ids of models and their tokenizers.
        data: ids of data sets; their rows are missing from what was loaded.
    """

    models: list[str] = field(default_factory=list)
    data: list[str] = field(default_factory=list)


_noting: ContextVar[Downloads | None] = ContextVar("noting", default=None)


@contextlib.contextmanager
def noting_downloads() -> Iterator[Downloads]:
    """A context in which the hub is not asked: a hub id that is not on disk is recorded and treated as available.

    Whether the hub has it is not checked. A name that is neither on disk nor a hub id is still refused.
    """
    import datasets

    downloads = Downloads()
    token = _noting.set(downloads)
    places: list[Any] = [constants, datasets.config]
    before = [place.HF_HUB_OFFLINE for place in places]
    try:
        for place in places:  # the libraries would ask for newer versions also of what is on disk
            place.HF_HUB_OFFLINE = True
        yield downloads
    finally:
        _noting.reset(token)
        for place, value in zip(places, before, strict=True):
            place.HF_HUB_OFFLINE = value


def note_model(name: str) -> bool:
    """Record a model; False outside of `noting_downloads`."""
    return _note(name, "models")


def note_data(name: str) -> bool:
    """Record a data set; False outside of `noting_downloads`."""
    return _note(name, "data")


def is_awaited(name: str) -> bool:
    """Whether this model was recorded, so that its files cannot be read yet."""
    noting = _noting.get()
    return noting is not None and name in noting.models


def rows_awaited() -> bool:
    """Whether rows are missing because their data set was only recorded."""
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
