"""table.tex: arms × metrics as a paper prints them, no wider than a column."""

import math
import re
from collections.abc import Mapping, Sequence
from statistics import median
from typing import NamedTuple

from prefopt.study.comparison.best import pairs_for_best, unbeaten
from prefopt.study.comparison.comparison import Comparison, Spread
from prefopt.study.comparison.contrasts import AT_KL, Better
from prefopt.study.comparison.crossed import prompts_measured
from prefopt.study.comparison.statistics import Mean
from prefopt.study.comparison.verdict import metric_title
from prefopt.study.report.tex import breakable, escaped
from prefopt.support.errors import PrefoptError, nearest
from prefopt.support.wording import span

USUAL = ("gold", "reward", "win_rate", "accuracy", "kl", "length")
"""What is shown beside the primary metric, as far as there is room."""
COLUMNS = 4
"""The most metrics that are shown unasked."""
HIGHER = frozenset({"gold", "reward", "win_rate", "win_rate_length_controlled", "accuracy", "likelihood_accuracy"})
LOWER = frozenset({"nll", "pair_nll", "step_nll", "brier", "ece"})
"""Metrics of which one end is good whatever the question; of others, such as length and KL, neither is."""
TITLES = {
    "kl": "KL",
    "kl_k3": "KL (k3)",
    "nll": "NLL",
    "pair_nll": "pair NLL",
    "step_nll": "step NLL",
    "ece": "ECE",
    "brier": "Brier",
}
LONG = 16
"""Names of arms from this length on are broken into lines."""


class Column(NamedTuple):
    """A metric as it is printed.

    Attributes:
        title: its heading.
        better: which end is good; None where nobody has said.
        means: of each arm.
        best: arms that no other is shown to be better than; empty where no arm is shown to be worse than another.
    """

    title: str
    better: Better | None
    means: Mapping[str, Mean]
    best: frozenset[str]


def latex(comparison: Comparison) -> str:
    """A `table` as `comparison.paper` wants it, for booktabs and graphicx; it shrinks where names are too long for the column.

    Raises:
        PrefoptError: a metric that no run has measured.
    """
    spread = comparison.paper.spread
    names = [_known_metric(comparison, name) for name in comparison.paper.metrics] or usual(comparison)
    columns = [_column(comparison, name) for name in names]
    head = " & ".join(["", *(_heading(column) for column in columns)]) + r" \\"
    printed = [_cells(column, comparison.arms, spread) for column in columns]
    long = max(map(len, comparison.arms)) > LONG
    named = breakable if long else escaped
    rows = [" & ".join([named(arm), *(column[arm] for column in printed)]) + r" \\" for arm in comparison.arms]
    first = r">{\raggedright\arraybackslash}p{0.28\columnwidth}" if long else "l"
    tabular = [rf"\begin{{tabular}}{{@{{}}{first}{'c' * len(columns)}@{{}}}}", r"\toprule", head, r"\midrule", *rows]
    packages = "booktabs and graphicx" + (" and array" if long else "")
    return "\n".join(
        [
            f"% Made by `prefopt report`. Needs {packages}; \\columnwidth is that of a column, or of the page.",
            r"\begin{table}[t]",
            r"\centering\small\setlength{\tabcolsep}{4pt}%",
            r"\setbox0=\hbox{%",
            *tabular,
            r"\bottomrule",
            r"\end{tabular}}%",
            r"\ifdim\wd0>\columnwidth\resizebox{\columnwidth}{!}{\box0}\else\box0\fi",
            rf"\caption{{{caption(comparison, names, columns, spread)}}}",
            rf"\label{{tab:{re.sub(r'[^a-z0-9]+', '-', comparison.metric.lower()).strip('-')}}}",
            r"\end{table}",
            "",
        ]
    )


def usual(comparison: Comparison) -> list[str]:
    """The primary metric and the usual few that were measured, as many as a column has room for."""
    measured = [table.metric for table in comparison.others]
    return [comparison.metric, *(name for name in USUAL if name in measured)][:COLUMNS]


def direction(comparison: Comparison, metric: str) -> Better | None:
    """Which end of a metric is good: as declared for the primary one, as everybody has it for a few, else None."""
    plain = metric.removesuffix(AT_KL).rpartition("/")[2].partition("[")[0]
    if metric == comparison.metric:
        return comparison.better
    return "higher" if plain in HIGHER else "lower" if plain in LOWER else None


def caption(comparison: Comparison, names: Sequence[str], columns: Sequence[Column], spread: Spread) -> str:
    """What was measured on what, over how many seeds, and what ± and bold mean."""
    counts = sorted({row.mean.seeds for row in comparison.primary.rows})
    seeds = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    prompts = prompts_measured(comparison.runs, *(name.removesuffix(AT_KL) for name in names))
    of = f", {span(*prompts)} prompts" if prompts else ""
    level = f"{100 * comparison.confidence:g}\\%"
    kinds = {
        "interval": f"half of Student's {level} interval over seeds, for these prompts",
        "sd": "standard deviation between seeds",
        "sem": "standard error over seeds",
    }
    parts = [
        f"{escaped(metric_title(comparison.metric))} and other metrics on {escaped(comparison.rows_of(comparison.metric))}{of}"
        if len(names) > 1
        else f"{escaped(metric_title(comparison.metric))} on {escaped(comparison.rows_of(comparison.metric))}{of}",
        f"mean over {seeds} seed{'s' * (seeds != '1')}" + ("" if seeds == "1" else rf" $\pm$ {kinds[spread]}"),
    ]
    if any(column.better for column in columns):
        parts.append(r"$\uparrow$, $\downarrow$: higher or lower is better")
    if any(column.best for column in columns):
        parts.append(
            f"bold: the arms among which the best is, with {level} confidence for each metric (differences "
            f"{'paired by seed' if comparison.paired else 'of independent seeds'}, one-sided Student intervals, Bonferroni); "
            "none where no arm is shown to be worse than another"
        )
    text = "; ".join(parts) + "."
    return text[0].upper() + text[1:]


def _column(comparison: Comparison, metric: str) -> Column:
    table = next(table for table in (comparison.primary, *comparison.others) if table.metric == metric)
    means, better = {row.arm: row.mean for row in table.rows}, direction(comparison, metric)
    title = TITLES.get(metric) or metric_title(metric).replace("_", " ")
    # At matched KL each arm is read where it meets the baseline, so that arms cannot be compared with each other.
    if better is None or metric.endswith(AT_KL):
        return Column(title, better, means, frozenset())
    runs = {arm: {run.seed: run for run in comparison.of(arm)} for arm in comparison.arms}
    pairs = pairs_for_best(runs, metric, better, comparison.confidence, comparison.paired)
    best = unbeaten(comparison.arms, pairs)
    measured = [arm for arm in comparison.arms if means[arm].seeds]
    return Column(title, better, means, frozenset(best if len(best) < len(measured) else ()))


def _heading(column: Column) -> str:
    arrow = {"higher": r" $\uparrow$", "lower": r" $\downarrow$", None: ""}[column.better]
    return escaped(column.title) + arrow


def _cells(column: Column, arms: Sequence[str], spread: Spread) -> dict[str, str]:
    """A cell for each arm, all with as many decimals as the spread has two figures."""
    spreads = {arm: _spread(column.means[arm], spread) for arm in arms}
    sizes = [size for size in spreads.values() if math.isfinite(size) and size > 0]
    sizes = sizes or [
        abs(mean.value) / 10 for mean in column.means.values() if math.isfinite(mean.value) and mean.value
    ]
    places = min(4, max(0, 1 - math.floor(math.log10(median(sizes))))) if sizes else 0
    return {arm: _cell(column.means[arm], spreads[arm], places, arm in column.best) for arm in arms}


def _cell(mean: Mean, size: float, places: int, bold: bool) -> str:
    if not math.isfinite(mean.value):
        return "--"
    value = f"{mean.value:.{places}f}"
    value = rf"\mathbf{{{value}}}" if bold else value
    return f"${value}" + (rf" \pm {size:.{places}f}$" if math.isfinite(size) else "$")


def _spread(mean: Mean, spread: Spread) -> float:
    if spread == "interval":
        return (mean.high - mean.low) / 2
    return mean.sd / (math.sqrt(mean.seeds) if spread == "sem" and mean.seeds else 1)


def _known_metric(comparison: Comparison, name: str) -> str:
    tables = [table.metric for table in (comparison.primary, *comparison.others)]
    if name not in tables:
        raise PrefoptError(
            f"--metrics: there is no table of {name!r}.{nearest(name, tables)} There are: {', '.join(tables)}"
        )
    return name
