"""The reference pages that are made from code: the catalogue of objectives, and the fields of recipes.

`python -m prefopt.catalogue` writes docs/objectives.md, and docs/recipes.md and docs/label.md below their markers.
"""

import dataclasses
import inspect
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from prefopt.curves import draw
from prefopt.labelling.recipe import LabelRecipe
from prefopt.objectives import CATALOGUE, objective_class
from prefopt.recipe import Recipe, Section, describe
from prefopt.support.errors import PrefoptError
from prefopt.types import Needs

MARKER = "<!-- The rest is made by `python -m prefopt.catalogue`. -->\n"
"""What stands above it on a page of a recipe's fields is written by hand."""


PICTURE = """![the loss of one pair and its derivative against the margin, for every pairwise objective](objectives.svg)

With its defaults, on one pair whose completions have 20 tokens each and whose log-ratios are +h/2 and −h/2. The pull is what
a step does to the margin; where it is below 0, the loss wants the margin smaller. Scales differ from panel to panel. What another
margin in the batch would change (β-DPO, RPO) is not shown."""


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
    papers = re.findall(r"arXiv[ :](\d{4}\.\d{4,5})", doc)
    fields = dataclasses.fields(cls)
    return Entry(
        name,
        papers[0] if papers else "",
        needs_in_words(default_needs(cls)),
        ", ".join(f"{f.name}={'required' if f.default is dataclasses.MISSING else f.default}" for f in fields),
        " ".join(doc.partition("\n\n")[0].split()).rstrip("."),
    )


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
    say = {"rewards": "a scorer", "old": "the policy before the update", "values": "a value head"}
    parts = [first, *(say.get(name, name.replace("_", " ")) for name in names if getattr(needs, name))]
    return ", ".join([*parts, *needs.columns, *sorted(needs.statistics)])


def objectives_page() -> str:
    """docs/objectives.md: a table of all, then the docstring of each."""
    lines = ["# Objectives", "", "Made from the docstrings by `python -m prefopt.catalogue`.", ""]
    lines += ["| objective | arXiv | needs | what it is |", "|---|---|---|---|"]
    for e in entries():
        paper = f"[{e.paper}](https://arxiv.org/abs/{e.paper})" if e.paper else ""
        lines.append(f"| [{e.name}](#{e.name.lower()}) | {paper} | {e.needs} | {_cell(e.summary)} |")
    lines += ["", "## Every pairwise loss, and how hard it pulls", "", PICTURE]
    for e in entries():
        fields = f"defaults: `{e.defaults}`" if e.defaults else "no hyperparameters"
        lines += ["", f"## {e.name}", "", f"Needs {e.needs}; {fields}.", ""]
        lines.append("\n\n".join(_markdown(inspect.getdoc(CATALOGUE[e.name]) or "")))
    return "\n".join(lines) + "\n"


def _markdown(doc: str) -> Iterator[str]:
    """The paragraphs of a docstring: formulas as code, attributes as a list."""
    for paragraph in doc.split("\n\n"):
        head, _, rest = paragraph.partition("\n")
        if head == "Attributes:":
            yield re.sub(r"^ {4}(\w+): ", r"- `\1`: ", rest, flags=re.MULTILINE).replace("\n        ", " ")
        elif re.match(r"\S{1,12}( [^.=]{0,20})? = |L\(", head) and not paragraph.rstrip().endswith("."):
            yield f"```text\n{paragraph}\n```"
        else:
            yield paragraph.replace("<", "&lt;")


def recipe_fields(kind: type[Section] = Recipe) -> str:
    """The fields of a recipe, a table for each section."""
    lines = ["## Every field", ""]
    lines.append(
        "In the order of a recipe. A section without *required* can be left out, and so can each of its fields."
    )
    section = None
    for field in describe(kind):
        parent, _, name = field.key.rpartition(".")
        if field.kind.startswith("section") and not parent:
            lines += ["", f"### {name}", "", f"{field.description[0].upper()}{field.description[1:]}.", ""]
            section = None
            continue
        top = field.key.partition(".")[0] if parent else ""
        if section != top:
            lines += [""] * (lines[-1] != "") + ["| key | type | default | what it is |", "|---|---|---|---|"]
            section = top
        default = f"`{field.default}`" if field.default not in ("", "required") else f"*{field.default}*".strip("*")
        default = "*required*" if field.default == "required" else default
        lines.append(f"| `{field.key}` | {_cell(field.kind)} | {_cell(default)} | {_cell(field.description)} |")
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")


def pages(folder: Path) -> dict[Path, str]:
    """What each reference page below `folder` should hold."""
    fields: dict[Path, type[Section]] = {folder / "recipes.md": Recipe, folder / "label.md": LabelRecipe}
    return {
        folder / "objectives.md": objectives_page(),
        **{
            page: page.read_text().partition(MARKER)[0] + MARKER + "\n" + recipe_fields(kind)
            for page, kind in fields.items()
        },
    }


if __name__ == "__main__":
    docs = Path(sys.argv[1] if len(sys.argv) > 1 else "docs")
    for page, text in pages(docs).items():
        page.write_text(text)
    draw(docs / "objectives.svg")
