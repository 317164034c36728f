"""The reference pages that are made from code: the catalogue of objectives, the fields of recipes, the dialects of data sets,
what chat templates do.

`python docs/make.py` writes docs/objectives.md, and docs/data.md, docs/models.md, docs/recipes.md, docs/label.md,
docs/studies.md and docs/trl.md below their markers.
"""

import inspect
import re
import sys
from collections.abc import Iterator
from pathlib import Path

from templates import templates_table

from curves import draw
from prefopt.data.dialects import DIALECTS
from prefopt.objectives import CATALOGUE
from prefopt.objectives.listing import entries
from prefopt.policy.methods import REFUSED as UNTRAINED
from prefopt.policy.methods import methods
from prefopt.recipe import Recipe, Section, describe, foreign, other_names
from prefopt.runs.label.recipe import LabelRecipe
from prefopt.study import Study

MARKER = "<!-- The rest is made by `python docs/make.py`. -->\n"
"""What stands above it on a page of a recipe's fields is written by hand."""


DIALECTS_ARE = """Data sets whose columns are no format's, and are read on purpose. A row is recognised by its columns;
`source.adapt` names a dialect where it is not. That is needed where one data set answers two questions (which answer helps
more, which is safer): the run is refused until you say which one you ask. A row whose values contradict each other (a rank
that is missing, no winner among three, scores against the label) is refused with its place. Prompts and answers become turns
for the chat template, except where "text" is said.

Other data sets of the field are in a format as they are: *paired* are HuggingFaceH4/ultrafeedback_binarized, the preference
mixtures of Tulu 3, Skywork's preferences, argilla's Capybara and dpo-mix, and trl-lib's pairs; *unpaired* are mixtures for KTO;
*conversations* are UltraChat and the SFT mixtures of Tulu 3."""

PICTURE = """![the loss of one pair and its derivative against the margin, for every pairwise objective](objectives.svg)

With its defaults, on one pair whose completions have 20 tokens each and whose log-ratios are +h/2 and −h/2. The pull is what
a step does to the margin; where it is below 0, the loss wants the margin smaller. Scales differ from panel to panel. What another
margin in the batch would change (β-DPO, RPO) is not shown."""


def objectives_page() -> str:
    """docs/objectives.md: a table of all, then the docstring of each."""
    lines = ["# Objectives", "", "Made from the docstrings by `python docs/make.py`.", ""]
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


def foreign_names() -> str:
    """What settings of other libraries are called in a recipe: a table for each subject."""
    lines: list[str] = []
    for title, table in {**foreign.TABLES, **other_names.OTHERS}.items():
        lines += [f"### {title}", "", "| there | here | |", "|---|---|---|"]
        lines += [f"| {_codes(e.names)} | {_codes(e.keys)} | {_cell(e.note)} |" for e in table]
        lines.append("")
    lines += ["### The values of `loss_type`", "", "| of | there | `objective` here |", "|---|---|---|"]
    for config, losses in foreign.LOSSES.items():
        lines += [f"| `{config}` | `{name}` | {f'`{ours}`' if ours else 'none'} |" for name, ours in losses.items()]
    lines += ["", "### No counterpart, and why", "", "| there | |", "|---|---|"]
    lines += [f"| {_codes(e.names)} | {_cell(e.note)} |" for e in foreign.NONE]
    return "\n".join(lines) + "\n"


def adapter_methods() -> str:
    """Which methods of the installed peft can be trained, and why the others cannot."""
    usable = {name: cls for name, cls in sorted(methods().items()) if name not in UNTRAINED}
    lines = ["## Every method of peft", "", "What `policy.adapter.method` can name:", ""]
    lines += ["| method | its configuration in peft |", "|---|---|"]
    lines += [f"| `{name}` | `{cls.__name__}` |" for name, cls in usable.items()]
    lines += ["", "Those that cannot be trained here:", "", "| method | why |", "|---|---|"]
    lines += [f"| `{name}` | {why} |" for name, why in UNTRAINED.items()]
    return "\n".join(lines) + "\n"


def _codes(names: str) -> str:
    return ", ".join(f"`{name}`" for name in names.split())


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")


def pages(folder: Path) -> dict[Path, str]:
    """What each reference page below `folder` should hold."""
    fields: dict[Path, type[Section]] = {
        folder / "recipes.md": Recipe,
        folder / "label.md": LabelRecipe,
        folder / "studies.md": Study,
    }
    return {
        folder / "objectives.md": objectives_page(),
        **{
            page: page.read_text().partition(MARKER)[0] + MARKER + "\n" + recipe_fields(kind)
            for page, kind in fields.items()
        },
        **{
            page: page.read_text().partition(MARKER)[0] + MARKER + "\n" + made
            for page, made in ((folder / "trl.md", foreign_names()), (folder / "models.md", adapter_methods()))
        },
    }


def data_page(folder: Path) -> str:
    """docs/data.md, with what the chat templates of the installed TRL do; takes ten seconds."""
    by_hand = (folder / "data.md").read_text().partition(MARKER)[0]
    return by_hand + MARKER + "\n" + dialects_table() + "\n" + templates_table()


def dialects_table() -> str:
    """The data sets whose columns are their own."""
    lines = [
        "## Dialects",
        "",
        DIALECTS_ARE,
        "",
        "| `adapt` | data sets | columns | becomes | how |",
        "|---|---|---|---|---|",
    ]
    for one in DIALECTS.values():
        columns = ", ".join(f"`{name}`" for name in one.columns)
        only = "" if one.recognised else " *(only by name)*"
        lines.append(f"| `{one.name}`{only} | {one.data} | {columns} | {one.format} | {one.reading} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    docs = Path(sys.argv[1] if len(sys.argv) > 1 else "docs")
    for page, text in {**pages(docs), docs / "data.md": data_page(docs)}.items():
        page.write_text(text)
    draw(docs / "objectives.svg")
