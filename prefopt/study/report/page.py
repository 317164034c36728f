"""report.html, and the files that are written with it."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import yaml
from markupsafe import Markup

from prefopt.recipe.flat import flat
from prefopt.runs.accounting import CALLED
from prefopt.runs.records import RunRecord
from prefopt.study.comparison.comparison import Comparison
from prefopt.study.comparison.verdict import metric_title
from prefopt.study.report import text_tables
from prefopt.study.report.figures import draw
from prefopt.support.files import write_whole
from prefopt.support.terminal import visible

PROMPTS = 8
"""The number of prompts whose samples are shown."""
SELF = ("name", "seed", "seeds", "track")
"""Sections of a recipe that differ between any two runs."""


def write_report(comparison: Comparison, folder: Path) -> Path:
    """Write report.html, table.md, table.tex and results.csv; each replaces an earlier file of its name in one step.

    Returns:
        The path of the page, which needs no other file and no network.
    """
    folder.mkdir(parents=True, exist_ok=True)
    texts = {
        "results.csv": text_tables.to_csv(comparison),
        "table.md": text_tables.markdown(comparison),
        "table.tex": text_tables.latex(comparison),
        "report.html": page(comparison),
    }
    for name, text in texts.items():
        write_whole(folder / name, text)
    return folder / "report.html"


def page(comparison: Comparison) -> str:
    """The page as HTML. All text is escaped, because samples are written by models."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        finalize=_shown,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("page.html.jinja").render(
        c=comparison,
        headings=text_tables.HEADINGS,
        cells=text_tables.cells,
        ends=text_tables.ends,
        spread=text_tables.spread,
        number=text_tables.number,
        interval=text_tables.interval,
        metric_title=metric_title,
        caption=text_tables.caption(comparison),
        figures=[(figure.caption, Markup(figure.svg)) for figure in draw(comparison)],
        samples=samples(comparison),
        costs=[(title, [comparison.costs[arm][name] for arm in comparison.arms]) for name, title in CALLED.items()],
        differing=differing(comparison),
        recipes=[
            (arm, yaml.safe_dump(dict(r), sort_keys=False, allow_unicode=True)) for arm, r in _recipes(comparison)
        ],
        environment=environment_of(comparison.runs),
        described=any(row.interquartile == row.interquartile for row in comparison.primary.rows),
    )


def _shown(value: Any) -> Any:
    """Text with its control characters visible; HTML of our own and numbers as they are."""
    return visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def samples(comparison: Comparison) -> list[dict[str, Any]]:
    """Prompts with a completion of each arm, from the first of the seeds that most arms finished."""
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
    prompts = [p for p in next(iter(arms.values())) if all(p in by_prompt for by_prompt in arms.values())][:PROMPTS]
    return [
        {"prompt": p, "seed": seed, "arms": [(arm, by_prompt[p]) for arm, by_prompt in arms.items()]} for p in prompts
    ]


def differing(comparison: Comparison) -> list[tuple[str, list[str]]]:
    """Fields of the recipes that differ between arms, with the value of each arm; a field that a recipe lacks is null."""
    by_arm = {arm: flat(recipe) for arm, recipe in _recipes(comparison)}
    keys = list(dict.fromkeys(key for fields in by_arm.values() for key in fields if key.partition(".")[0] not in SELF))
    values = [(key, [_value_text(by_arm.get(arm, {}).get(key)) for arm in comparison.arms]) for key in keys]
    return [(key, of_arms) for key, of_arms in values if len(set(of_arms)) > 1]


def environment_of(runs: Sequence[RunRecord]) -> list[tuple[str, str]]:
    """Versions, devices and commits; several values where runs differ."""
    seen: dict[str, dict[str, None]] = {}
    for run in runs:
        for section in ("versions", "device", "git"):
            for key, value in flat(run.manifest.get(section) or {}).items():
                seen.setdefault(f"{section}.{key}", {})[_value_text(value)] = None
    return [(key, ", ".join(values)) for key, values in seen.items()]


def _recipes(comparison: Comparison) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The recipe of each arm, from its first run that has one; objectives with all their defaults."""
    for arm in comparison.arms:
        yield arm, next((_with_defaults(run) for run in comparison.of(arm) if run.recipe), {})


def _with_defaults(run: RunRecord) -> Mapping[str, Any]:
    terms, resolved = run.recipe.get("objective", []), run.manifest.get("objectives", [])
    if len(terms) != len(resolved):
        return run.recipe
    return {**run.recipe, "objective": [{**own, **term} for own, term in zip(resolved, terms, strict=True)]}


def _value_text(value: Any) -> str:
    """A value of a recipe or manifest; `null` where there is none."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _text(prompt: Any) -> str:
    """A prompt as text; the turns of a conversation one below the other."""
    if isinstance(prompt, str):
        return prompt
    return "\n".join(f"{turn.get('role', '')}: {turn.get('content', '')}" for turn in prompt)
