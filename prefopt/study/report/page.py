"""report.html, and the files that are written with it."""

import base64
import hashlib
from pathlib import Path
from typing import Any

import jinja2
import yaml
from markupsafe import Markup

from prefopt.runs.accounting import CALLED
from prefopt.study.comparison.comparison import Comparison
from prefopt.study.comparison.verdict import metric_title
from prefopt.study.report import contents, methods, text_tables
from prefopt.study.report.figures import figures
from prefopt.study.report.json_results import to_json
from prefopt.study.report.paper_table import latex
from prefopt.study.report.references import to_bibtex
from prefopt.study.report.style import looks
from prefopt.study.report.svg import swatch
from prefopt.support.files import write_whole
from prefopt.support.terminal import visible
from prefopt.support.wording import amount, interval, number

SHORT = 5
"""How many notes are shown before the rest is folded."""
HERE = Path(__file__).parent


def write_report(comparison: Comparison, folder: Path) -> Path:
    """Write the page and the files beside it; each replaces an earlier file of its name in one step.

    Returns:
        The path of the page, which needs no other file and no network.

    Raises:
        PrefoptError: table.tex is to have a metric that was not measured.
    """
    texts = {
        "results.csv": text_tables.to_csv(comparison),
        "results.json": to_json(comparison),
        "table.md": text_tables.markdown(comparison),
        "table.tex": latex(comparison),
        "methods.md": methods.markdown(comparison),
        "methods.tex": methods.latex(comparison),
        "references.bib": to_bibtex(comparison),
        "report.html": page(comparison, folder),
    }
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        write_whole(folder / name, text)
    return folder / "report.html"


def page(comparison: Comparison, folder: Path) -> str:
    """The page as HTML, to be put into this folder. All text is escaped, because samples are written by models."""
    script = (HERE / "page.js").read_text(encoding="utf-8")
    wins = any(win.seeds for win in comparison.wins.values())
    samples = contents.samples(comparison)
    return template("page.html.jinja").render(
        c=comparison,
        SHORT=SHORT,
        script=Markup(script),
        script_hash=script_hash(script),
        facts=contents.facts(comparison, folder.absolute()),
        sections=_sections(comparison, wins, bool(samples)),
        headings=text_tables.HEADINGS,
        cells=contents.cells_and_reasons,
        ends=text_tables.ends,
        number=number,
        interval=interval,
        amount=amount,
        metric_title=metric_title,
        caption=text_tables.caption(comparison),
        runs=contents.run_links(comparison, folder),
        legend=[(arm, swatch(look)) for arm, look in looks(comparison.arms).items()],
        figures=[(figure, Markup(svg)) for figure in figures(comparison) if (svg := figure.svg(legend=False))],
        samples=samples,
        of_sample=contents.of_sample,
        turns_of_sample=contents.turns_of_sample,
        costs=[(title, [comparison.costs[arm][name] for arm in comparison.arms]) for name, title in CALLED.items()],
        differing=contents.differing(comparison),
        by_value=contents.by_value,
        others=contents.grouped(comparison.others),
        recipes=[
            (arm, yaml.safe_dump(dict(r), sort_keys=False, allow_unicode=True))
            for arm, r in contents.recipes(comparison)
        ],
        environment=contents.environment_of(comparison.runs),
        described=any(row.interquartile == row.interquartile for row in comparison.primary.rows),
    )


def template(name: str) -> jinja2.Template:
    """A template beside this file, whose values are escaped and have their control characters visible."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE),
        autoescape=True,
        finalize=_shown,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(name)


def script_hash(script: str) -> str:
    """What a page's policy names the one script that it allows by, so that no other can run, whoever wrote it."""
    return f"sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}"


def _sections(comparison: Comparison, wins: bool, samples: bool) -> list[tuple[str, str]]:
    """Ids and names of the page's sections, for its list of contents."""
    return [
        ("result", metric_title(comparison.metric)),
        ("seeds", "Every seed"),
        ("figures", "Figures"),
        *([("wins", "Wins")] if wins else []),
        *([("samples", "Samples")] if samples else []),
        ("costs", "Costs"),
        ("differences", "What differs"),
        ("others", "Other metrics"),
        ("environment", "Environment"),
        ("recipes", "Recipes"),
    ]


def _shown(value: Any) -> Any:
    """Text with its control characters visible; HTML of our own and numbers as they are."""
    return visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value
