"""Verbs that look something up or check it: check, objectives, recipes, runs, cache."""

import argparse
import sys
from pathlib import Path
from typing import Any

import yaml
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from prefopt.cli import consoles
from prefopt.support.errors import PrefoptError, nearest


def check(options: argparse.Namespace) -> None:
    """`prefopt check`."""
    from prefopt.environments.making import ENVIRONMENTS, check_section, is_environment
    from prefopt.objectives import load_objective
    from prefopt.objectives.contract import check_objective
    from prefopt.recipe import Environment, checked
    from prefopt.support.plugins import checked_fields, find

    wrong = [field for field in options.fields if "=" not in field]
    if wrong:
        raise PrefoptError(f"{wrong[0]!r} is no field; write field=value, for example beta=0.3")
    fields = {key: yaml.safe_load(text) for key, _, text in (f.partition("=") for f in options.fields)}
    named = options.objective
    if named in ENVIRONMENTS or (":" in named and is_environment(find(named))):
        row = {"prompt": "a prompt"} | {key[4:]: fields.pop(key) for key in list(fields) if key.startswith("row.")}
        section: Any = Environment  # whose keys are checked as those of whole recipes are
        answer = check_section(checked(section, {"name": named, **fields}, named), "check", row).turn
        return consoles.out.print(
            f"{named} has the shape of an environment; its first answer is {answer}", markup=False
        )
    objective = checked_fields(load_objective(options.objective, **fields), options.objective)
    for name in check_objective(objective):
        consoles.out.print(Text.assemble(("✓", "green"), f" {name}"))
    consoles.out.print(f"{type(objective).__name__} keeps the contract")


def objectives(options: argparse.Namespace) -> None:
    """`prefopt objectives`."""
    from prefopt.objectives.listing import entries, entry

    for one in [entry(name) for name in options.names] or entries():
        paper = f"  arXiv {one.paper}" if one.paper else ""
        consoles.out.print(Text.assemble((one.name, "bold"), (paper, "dim")))
        facts = f"needs {one.needs}" + (f" · {one.defaults}" if one.defaults else "")
        consoles.out.print(Padding(Text(f"{one.summary}.\n").append(facts, style="cyan"), (0, 0, 0, 4)))
    consoles.out.print(
        Text("\nFormulas and sources: docs/objectives.md. Your own: `objective: losses.py:Class`.", style="dim")
    )


def recipes(options: argparse.Namespace) -> None:
    """`prefopt recipes`."""
    from prefopt.recipe.shipped import SHIPPED, copied, found, shipped, summary

    if options.copy:
        return consoles.out.print(str(copied(Path(options.copy))), soft_wrap=True)
    if options.name:
        file = found(options.name)
        if not file.is_file():
            raise PrefoptError(
                f"no recipe {options.name}.{nearest(options.name, (name for name, _ in shipped()))} `prefopt recipes` lists them"
            )
        consoles.err.print(f"# {file}", style="dim", soft_wrap=True)
        return consoles.out.print(
            file.read_text(encoding="utf-8"), end="", markup=False, highlight=False, soft_wrap=True
        )
    everything = list(shipped())
    for verb, studies in (("run", False), ("study", True)):
        consoles.out.print(Text(f"prefopt {verb} NAME", style="dim"))
        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 2), show_header=False)
        for name, file in everything:
            if (file.name == "study.yaml") == studies:
                table.add_row(Text(name, style="bold", overflow="fold"), Text(summary(file)))
        consoles.out.print(table)
    consoles.out.print(
        Text(
            f"Judges' and labellings' are for `prefopt evaluate` and `prefopt label`. All are in {SHIPPED}; copies to edit: "
            "prefopt recipes --copy FOLDER",
            style="dim",
        )
    )


def runs(options: argparse.Namespace) -> None:
    """`prefopt runs`."""
    from prefopt.runs.listing import listed_runs
    from prefopt.runs.results import show_runs

    show_runs(consoles.out, Path(options.folder), list(listed_runs(Path(options.folder))))


def cache(options: argparse.Namespace) -> None:
    """`prefopt cache`."""
    from prefopt.runs.results import show_kept, size
    from prefopt.support import caches

    look = caches.verified if options.action == "verify" else caches.usage
    entries = list(look(options.kind))
    if not entries:
        return consoles.out.print("nothing is kept" + (f" of the kind {options.kind}" if options.kind else ""))
    show_kept(consoles.out, entries)
    if options.action == "clear":
        if not options.yes:
            raise PrefoptError("this would delete what is listed above; add --yes to do it")
        consoles.out.print(f"deleted {size(caches.clear(options.kind))}")
    if damaged := sum(one.damaged for one in entries):
        consoles.out.print(
            f"{damaged} damaged: they are never used but computed again. `prefopt cache clear` deletes them"
        )
        sys.exit(1)
