"""The figures of a report: their names, their captions, and how each is drawn, as on the page so in files."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

from prefopt.runs.records import RunRecord, rows_of
from prefopt.study.comparison.comparison import Comparison
from prefopt.study.comparison.verdict import metric_title
from prefopt.study.report import plots
from prefopt.study.report.plots import Point
from prefopt.study.report.style import looks, rc
from prefopt.study.report.svg import svg, unwarned

WIDTH = 4.7
"""Inches; narrow enough to be read on a telephone."""


class Figure(NamedTuple):
    """A figure of a comparison.

    Attributes:
        name: of its file.
        title: what it shows, in a few words.
        caption: how it is to be read, in a sentence or two.
        draw: on an empty figure of matplotlib; gives the values that were drawn, none where there was nothing to draw.
        height: in inches, without a legend.
        comparison: what is shown.
    """

    name: str
    title: str
    caption: str
    draw: Callable[[Any], list[Point]]
    height: float
    comparison: Comparison

    def svg(self, legend: bool = True) -> str:
        """For a page; empty where there was nothing to draw.

        Args:
            legend: also say in the figure which arm is which; a page with a legend of its own leaves it out.
        """
        with rc_of(self.name), drawn(self, WIDTH, legend) as (figure, points):
            style = looks(self.comparison.arms)
            return svg(figure, self.name, f"{self.title}. {self.caption}", points, style) if points else ""


@contextmanager
def rc_of(name: str, size: float = 9, embedded: bool = False) -> Iterator[None]:
    """matplotlib without a display, in the style of reports.

    Args:
        name: of the figure.
        size: of letters, in points.
        embedded: letters of an SVG are outlines, and need no font where it is shown.
    """
    import matplotlib

    matplotlib.use("agg")
    with matplotlib.rc_context(rc(name, size) | ({"svg.fonttype": "path"} if embedded else {})):
        yield


@contextmanager
def drawn(one: Figure, width: float, legend: bool) -> Iterator[tuple[Any, list[Point]]]:
    """The figure, drawn at this width in inches, and the values in it; it is closed afterwards."""
    from matplotlib import pyplot as plt

    figure = plt.figure(figsize=(width, one.height), layout="constrained")
    try:
        points = one.draw(figure)
        handles, labels = figure.axes[0].get_legend_handles_labels() if figure.axes else ([], [])
        if handles and legend:
            columns = max(1, int(width // (0.55 + 0.075 * max(map(len, labels)))))
            figure.set_figheight(one.height + 0.19 * math.ceil(len(labels) / columns))
            figure.legend(handles, labels, loc="outside lower left", ncols=columns)
        with unwarned():
            figure.draw_without_rendering()  # the layout, which says where the values are
        yield figure, points
    finally:
        plt.close(figure)


def figures(comparison: Comparison) -> list[Figure]:
    """All of them, also those for which these runs have no numbers."""
    metric, arms = comparison.metric.removesuffix("_at_kl"), len(comparison.arms)
    measured = partial(_held_out, metric)
    ends, along = comparison.rows_of(comparison.metric), rows_of(comparison.runs, curves=True)
    first = "Every seed, the mean" if comparison.paired else "The mean"
    one = partial(Figure, height=3.1, comparison=comparison)
    return [
        one(
            "differences",
            f"Differences to {comparison.baseline} in {metric_title(comparison.metric)} on {ends}",
            f"{first}, its own {comparison.confidence:.0%} interval (thick) and the simultaneous one (thin)",
            partial(plots.differences, comparison),
            height=2.9 + max(0.0, 0.25 * (arms - 6)),
        ),
        one(
            "frontier",
            f"{metric} against KL(π ‖ π_ref) on {along}",
            "The path of every seed, a marker where it ends. The axis is even in √KL",
            lambda figure: plots.frontier(comparison, figure, metric),
        ),
        one(
            "learning",
            f"Held-out {metric} on {along} while training",
            "Mean, and the range of the seeds",
            lambda figure: plots.curves(comparison, figure, measured, f"held-out {metric}"),
        ),
        one(
            "length",
            f"Length against gold reward on {rows_of(comparison.runs)}",
            "A marker for each seed's mean, a line through fifths of all samples by length",
            partial(plots.length, comparison),
        ),
        one(
            "logratio",
            f"How far held-out pairs are pushed apart, on {along}",
            "Log-ratios to the reference, chosen minus rejected, in nats: without any objective's β, so arms can be compared. "
            "Mean, and the range of the seeds",
            lambda figure: plots.curves(comparison, figure, _LOGRATIO, "log-ratio margin, nats"),
        ),
        _rewards(comparison),
        _reward_of_rollouts(comparison),
    ]


def _held_out(metric: str, run: RunRecord) -> plots.Series:
    return run.measured(metric)


_LOGRATIO = partial(_held_out, "logratio_margin")


def _rewards(comparison: Comparison) -> Figure:
    def series(run: RunRecord, which: str) -> plots.Series:
        return run.series(f"rewards/{which}")

    return Figure(
        "rewards",
        "Implicit rewards of training pairs, each arm on an axis of its own",
        "Chosen (solid) and rejected completions (dashed): mean, and the range of the seeds. A reward is in the units of its "
        "objective (β · log-ratio in DPO), so shapes can be compared between arms, and heights cannot",
        lambda figure: plots.panels(comparison, figure, {"chosen": "-", "rejected": "--"}, series),
        _height_of_panels(sum(any(series(run, "chosen")[0] for run in comparison.of(a)) for a in comparison.arms)),
        comparison,
    )


def _reward_of_rollouts(comparison: Comparison) -> Figure:
    """On one axis where one feedback gave all of them; arms that learn from different ones have different units."""

    def series(run: RunRecord, which: str = "reward") -> plots.Series:
        return run.series(f"rollouts/{which}")

    online = [arm for arm in comparison.arms if any(series(run)[0] for run in comparison.of(arm))]
    feedback = [next((run.recipe.get("feedback") for run in comparison.of(arm) if run.recipe), None) for arm in online]
    how = "As it was trained on: mean, and the range of the seeds"
    if all(one == feedback[0] for one in feedback):
        return Figure(
            "reward",
            "Reward of rollouts",
            how,
            lambda figure: plots.curves(comparison, figure, series, "reward of rollouts"),
            3.1,
            comparison,
        )
    return Figure(
        "reward",
        "Reward of rollouts, each arm on an axis of its own",
        f"{how}. Their feedback differs, and so do the units: shapes can be compared between arms, and heights cannot",
        lambda figure: plots.panels(comparison, figure, {"reward": "-"}, series),
        _height_of_panels(len(online)),
        comparison,
    )


def _height_of_panels(arms: int) -> float:
    return 0.5 + 1.5 * math.ceil(arms / 2)
