"""A comparison as text: Markdown, CSV, and the table in a terminal."""

import csv
import io
import math
import re
from collections.abc import Mapping

from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from prefopt.runs.accounting import CALLED
from prefopt.study.comparison.comparison import Comparison, Row, Table
from prefopt.study.comparison.confounds import together
from prefopt.study.comparison.statistics import Mean
from prefopt.study.comparison.verdict import metric_title, seeds_in_words
from prefopt.support.terminal import one_line
from prefopt.support.wording import interval, number

HEADINGS = ("arm", "seeds", "mean", "difference", "simultaneous", "other prompts, too", "p (Holm)", "r", "verdict")
SHOWN = {
    0: ("arm", "mean", "difference", "verdict"),
    76: ("arm", "seeds", "mean", "difference", "simultaneous", "p (Holm)", "r", "verdict"),
    110: HEADINGS,
}
"""The columns of terminals from each width on; the sentence below the table has what is left out."""


def spread(mean: Mean, signed: bool = False) -> str:
    """Mean and its interval."""
    return (
        f"{number(mean.value, signed)} {interval(mean.low, mean.high)}"
        if mean.seeds > 1
        else number(mean.value, signed)
    )


def ends(better: str) -> dict[str, str]:
    """Claims about an exploratory metric: higher or lower. Which is better is declared for the primary metric alone."""
    return {"better": better, "worse": "lower" if better == "higher" else "higher"}


def cells(row: Row, words: Mapping[str, str] | None = None) -> list[str]:
    """A row's cells, in the order of `HEADINGS`; `words` replaces the names of claims."""
    lost = sum(not math.isfinite(value) for value in row.values.values())
    seeds = f"{len(row.values) - lost} of {len(row.values)}" if lost else str(len(row.values))
    d = row.difference
    where = f" at KL {number(row.kl)}" if row.kl is not None and math.isfinite(row.kl) else ""
    if d is None:
        return [row.arm, seeds, spread(row.mean), f"baseline{where}", "", "", "", "", ""]
    verdict = (words or {}).get(row.claim, row.claim) + where
    if row.over_prompts is not None:
        e = row.over_prompts
        alike = f"{number(e.value, signed=True)} on each"
        verdict = f"one seed; its policies over prompts: {interval(e.low, e.high) if e.low == e.low else alike}"
    if row.claim == "undecided":
        verdict = f"too few seeds{where}" + (f": {seeds_in_words(d.needed)} needed" if d.needed else "")
    crossed = interval(*row.crossed.both) if row.crossed else "–"
    intervals = [spread(d.mean, signed=True), interval(d.low, d.high), crossed]
    return [row.arm, seeds, spread(row.mean), *intervals, number(d.holm), number(d.correlation), verdict]


def markdown(comparison: Comparison) -> str:
    """table.md: the verdict and the primary table. Names are text: they make no links, images, HTML or further columns."""
    lines = ["| " + " | ".join(HEADINGS) + " |", "|---" * len(HEADINGS) + "|"]
    lines += ["| " + " | ".join(map(_in_markdown, cells(row))) + " |" for row in comparison.primary.rows]
    above = (_in_markdown(text) for text in (comparison.verdict, caption(comparison)))
    return "\n\n".join([*above, "\n".join(lines)]) + "\n"


def _in_markdown(text: str) -> str:
    """A text that Markdown shows as it is, in one line; what stands in no name of an ordinary run is escaped."""
    return re.sub(r"[\\`|<]|\](?=[(\[:])", r"\\\g<0>", one_line(text))


def caption(comparison: Comparison) -> str:
    """What the columns mean, in a sentence."""
    how = "paired by seed" if comparison.paired else "Welch's"
    metric, pairs = metric_title(comparison.metric), len(comparison.primary.pairs)
    family = (
        f"Bonferroni over all {pairs} pairs of arms"
        if pairs
        else f"Bonferroni over {len(comparison.arms) - 1} comparisons"
    )
    if comparison.against == "best":
        family = "arm − the best of the others, all together"
    crossed = any(row.crossed for row in comparison.primary.rows)
    other = "; other prompts, too: the same for other seeds and other prompts, where the others are for these prompts"
    return (
        f"{metric} on {comparison.rows_of(comparison.metric)}, {comparison.better} is better; mean over seeds and difference to "
        f"{comparison.baseline} ({how}), with {comparison.confidence:.0%} Student intervals; simultaneous: {family}"
        f"{other if crossed else ''}; r: correlation of the two arms over seeds."
    )


def to_csv(comparison: Comparison) -> str:
    """results.csv: a line for each run, in full precision; seconds, which depend on the machine, are the last column."""
    tables = [comparison.primary, *comparison.others]
    metrics = sorted({name for run in comparison.runs for name in run.after})
    derived = [table.metric for table in tables if table.metric not in metrics]
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(map(_in_spreadsheet, ["arm", "seed", "state", *metrics, *derived, *CALLED]))
    for run in comparison.runs:
        row = [run.after.get(name, math.nan) for name in metrics]
        row += [_of(table, run.arm, run.seed) for name in derived for table in tables if table.metric == name]
        row += [float(run.costs.get(name, math.nan)) for name in CALLED]
        numbers = ("" if math.isnan(value) else repr(value) for value in row)
        writer.writerow([_in_spreadsheet(run.arm), run.seed, run.state, *numbers])
    return file.getvalue()


FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20")
"""What a cell begins with that a spreadsheet computes; the last four are their full-width forms."""


def _in_spreadsheet(name: str) -> str:
    """A name that a spreadsheet takes for text: an apostrophe before what begins like a formula. Numbers do not come here."""
    return one_line(f"'{name}" if name.lstrip(" ").startswith(FORMULA) else name)


def _of(table: Table, arm: str, seed: int) -> float:
    return next(row.values.get(seed, math.nan) for row in table.rows if row.arm == arm)


def show(console: Console, comparison: Comparison) -> None:
    """Print the primary table, the verdict, and the notes."""
    title = f"{metric_title(comparison.metric)}, {comparison.rows_of(comparison.metric)}"
    table = RichTable(box=None, pad_edge=False, padding=(0, 2, 0, 0), title=title, title_justify="left")
    widest = max(width for width in SHOWN if width <= console.width)
    shown = [HEADINGS.index(heading) for heading in SHOWN[widest]]
    for column in shown:
        table.add_column(HEADINGS[column], overflow="fold")
    for row in comparison.primary.rows:
        style, texts = {"better": "green", "worse": "red"}.get(row.claim, ""), cells(row)
        table.add_row(*(Text(texts[column]) for column in shown), style=style)
    console.print(table)
    claim, *more = comparison.sentences
    console.print(Text(f"\n{claim}", style="bold"))
    for sentence in more:
        console.print(Text(sentence))
    for note in (*comparison.notes, *together(comparison.confounds)):
        console.print(Text(f"note: {note}", style="yellow"))
