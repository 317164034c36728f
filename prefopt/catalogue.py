"""The catalogue as people read it: made from the classes and their docstrings."""

import dataclasses
import inspect
import re
from typing import NamedTuple

from prefopt.objectives import CATALOGUE
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
    return [entry(name) for name in sorted(CATALOGUE)]


def entry(name: str) -> Entry:
    """One objective: its paper is the first arXiv id of its docstring, its summary the first line."""
    cls = CATALOGUE[name]
    doc = inspect.getdoc(cls) or ""
    papers = re.findall(r"arXiv (\d{4}\.\d{4,5})", doc)
    fields = dataclasses.fields(cls)  # type: ignore[arg-type]
    return Entry(
        name,
        papers[0] if papers else "",
        needs_in_words(cls.needs),
        ", ".join(f"{f.name}={f.default}" for f in fields),
        doc.splitlines()[0].rstrip("."),
    )


def needs_in_words(needs: Needs) -> str:
    """Short words for what an objective must be given."""
    words = {1: "one completion", 2: "pairs"}
    parts = [
        "the best completion"
        if needs.completions == 1 and needs.ordered
        else words.get(
            needs.completions or 0, "lists" if needs.completions is None else f"{needs.completions} completions"
        )
    ]
    names = ("scores", "preference", "reference", "old", "rollouts", "values", "rewards", "whole_batch")
    parts += [name.replace("_", " ") for name in names if getattr(needs, name)]
    return ", ".join([*parts, *needs.columns, *sorted(needs.statistics)])
