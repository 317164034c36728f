"""report.html and the files beside it."""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import yaml
from markupsafe import Markup

from prefopt.runs.accounting import CALLED
from prefopt.runs.records import Finished
from prefopt.study.comparison.tables import Comparison
from prefopt.study.comparison.verdict import named
from prefopt.study.report import tables
from prefopt.study.report.figures import draw

PROMPTS = 8
"""Prompts whose samples are shown."""
SELF = ("name", "seed", "seeds", "track")
"""Sections of a recipe in which runs differ by nature."""


def write_report(comparison: Comparison, folder: Path) -> Path:
    """Write report.html, table.md, table.tex and results.csv; earlier ones of the same names are replaced, each at once.

    Returns:
        The page, which needs no other file and no network.
    """
    folder.mkdir(parents=True, exist_ok=True)
    texts = {
        "results.csv": tables.to_csv(comparison),
        "table.md": tables.markdown(comparison),
        "table.tex": tables.latex(comparison),
        "report.html": page(comparison),
    }
    for name, text in texts.items():
        partial = folder / f".{name}.partial"
        partial.write_text(text, encoding="utf-8")
        os.replace(partial, folder / name)
    return folder / "report.html"


def page(comparison: Comparison) -> str:
    """The page. All text is escaped: samples are written by models."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("page.html.jinja").render(
        c=comparison,
        headings=tables.HEADINGS,
        cells=tables.cells,
        ends=tables.ends,
        spread=tables.spread,
        number=tables.number,
        interval=tables.interval,
        named=named,
        caption=tables.caption(comparison),
        figures=[(figure.caption, Markup(figure.svg)) for figure in draw(comparison)],
        samples=samples(comparison),
        costs=[(said, [comparison.costs[arm][name] for arm in comparison.arms]) for name, said in CALLED.items()],
        differing=differing(comparison),
        recipes=[
            (arm, yaml.safe_dump(dict(r), sort_keys=False, allow_unicode=True)) for arm, r in _recipes(comparison)
        ],
        environment=environment_of(comparison.runs),
        described=any(row.interquartile == row.interquartile for row in comparison.primary.rows),
    )


def samples(comparison: Comparison) -> list[dict[str, Any]]:
    """Prompts with what each arm wrote after them, of the first seed that most arms finished."""
    by_seed: dict[int, dict[str, dict[str, Mapping[str, Any]]]] = {}
    for run in comparison.runs:
        if run.evaluation and run.evaluation.samples:
            first: dict[str, Mapping[str, Any]] = {}
            for sample in run.evaluation.samples:
                first.setdefault(_text(sample["prompt"]), sample)
            by_seed.setdefault(run.seed, {})[run.arm] = first
    if not by_seed:
        return []
    seed, arms = max(by_seed.items(), key=lambda item: (len(item[1]), -item[0]))
    prompts = [p for p in next(iter(arms.values())) if all(p in found for found in arms.values())][:PROMPTS]
    return [{"prompt": p, "seed": seed, "arms": [(arm, found[p]) for arm, found in arms.items()]} for p in prompts]


def differing(comparison: Comparison) -> list[tuple[str, list[str]]]:
    """Fields of the recipes that are not the same in all arms, with the value of each arm; one that a recipe lacks is null."""
    flat = {arm: dict(_flat(recipe)) for arm, recipe in _recipes(comparison)}
    keys = list(dict.fromkeys(key for found in flat.values() for key in found if key.partition(".")[0] not in SELF))
    values = [(key, [flat.get(arm, {}).get(key, "null") for arm in comparison.arms]) for key in keys]
    return [(key, of_arms) for key, of_arms in values if len(set(of_arms)) > 1]


def environment_of(runs: Sequence[Finished]) -> list[tuple[str, str]]:
    """Versions, devices and commits; several where runs differ."""
    found: dict[str, dict[str, None]] = {}
    for run in runs:
        for section in ("versions", "device", "git"):
            for key, value in _flat(run.manifest.get(section) or {}):
                found.setdefault(f"{section}.{key}", {})[value] = None
    return [(key, ", ".join(values)) for key, values in found.items()]


def _recipes(comparison: Comparison) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Each arm's, of its first run that has one; objectives with the defaults that they had."""
    for arm in comparison.arms:
        yield arm, next((_whole(run) for run in comparison.of(arm) if run.recipe), {})


def _whole(run: Finished) -> Mapping[str, Any]:
    terms, made = run.recipe.get("objective", []), run.manifest.get("objectives", [])
    if len(terms) != len(made):
        return run.recipe
    return {**run.recipe, "objective": [{**own, **term} for own, term in zip(made, terms, strict=True)]}


def _flat(tree: Mapping[str, Any] | Sequence[Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    items = tree.items() if isinstance(tree, Mapping) else enumerate(tree)
    for key, value in items:
        if isinstance(value, Mapping) or (isinstance(value, list) and any(isinstance(v, Mapping) for v in value)):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _text(prompt: Any) -> str:
    """A prompt as people read it: text, or turns."""
    if isinstance(prompt, str):
        return prompt
    return "\n".join(f"{turn.get('role', '')}: {turn.get('content', '')}" for turn in prompt)
