"""The catalogue in words: what each objective is, and what it needs."""

import dataclasses
import inspect
import re
from typing import Any, NamedTuple

from prefopt.objectives import CATALOGUE, objective_class
from prefopt.support.errors import PrefoptError
from prefopt.types import Needs


class Entry(NamedTuple):
    """One objective of the catalogue."""

    name: str
    paper: str
    needs: str
    defaults: str
    summary: str


def entries() -> list[Entry]:
    """Every objective, by name."""
    return [entry(name) for name in sorted(CATALOGUE, key=str.lower)]


def entry(name: str) -> Entry:
    """One objective, of the catalogue or by path.

    Its paper is the first arXiv id of its docstring, its summary the first paragraph.

    Raises:
        PrefoptError: there is none of this name.
    """
    cls = objective_class(name)
    doc = inspect.getdoc(cls) or ""
    papers = arxiv_ids(doc)
    fields = dataclasses.fields(cls)
    return Entry(
        name,
        papers[0] if papers else "",
        needs_in_words(default_needs(cls)),
        ", ".join(f"{f.name}={'required' if f.default is dataclasses.MISSING else f.default}" for f in fields),
        " ".join(doc.partition("\n\n")[0].split()).rstrip("."),
    )


def arxiv_ids(doc: str) -> list[str]:
    """The arXiv ids that a docstring names, in order."""
    return re.findall(r"arXiv[ :](\d{4}\.\d{4,5})", doc)


def default_needs(cls: Any) -> Needs:
    """What an objective needs with its default fields: some need more with other ones.

    Raises:
        PrefoptError: needs that depend on fields, one of which has no default.
    """
    if isinstance(cls.needs, Needs):
        return cls.needs
    try:
        return cls().needs
    except TypeError as error:
        raise PrefoptError(
            f"the needs of {cls.__name__} depend on its fields, and it has no defaults: {error}"
        ) from error


def needs_in_words(needs: Needs) -> str:
    """Short words for what an objective must be given."""
    words = {None: "lists", 1: "one completion", 2: "pairs"}
    first = words.get(needs.completions, f"{needs.completions} completions")
    if needs.completions == 1 and needs.ordered:
        first = "the best completion"
    names = ("scores", "preference", "reference", "old", "rollouts", "values", "rewards", "whole_batch")
    say = {
        "rewards": "a scorer of steps" if needs.step_rewards else "a scorer",
        "old": "the policy before the update",
        "values": "a value head",
    }
    parts = [first, *(say.get(name, name.replace("_", " ")) for name in names if getattr(needs, name))]
    return ", ".join([*parts, *needs.columns, *sorted(needs.statistics)])
