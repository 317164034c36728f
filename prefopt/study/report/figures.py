"""The figures of a report; each shows every seed."""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from prefopt.runs.records import RunRecord, rows_of
from prefopt.study.comparison.comparison import Comparison
from prefopt.study.comparison.verdict import metric_title
from prefopt.study.report.style import INK, Look, label, looks, rc, svg

WIDTH = 4.7
"""Inches; narrow enough to be read on a telephone."""


class Figure(NamedTuple):
    """A figure: its name, its caption, and the SVG, which is empty where there was nothing to draw."""

    name: str
    caption: str
    svg: str


def draw(comparison: Comparison) -> list[Figure]:
    """The figures for which these runs have the numbers."""
    import matplotlib

    matplotlib.use("agg")
    metric = comparison.metric.removesuffix("_at_kl")
    ends, along = comparison.rows_of(comparison.metric), rows_of(comparison.runs, curves=True)
    panels: list[tuple[str, str, Callable[[Any, str], bool]]] = [
        (
            "differences",
            f"Differences to {comparison.baseline} in {metric_title(comparison.metric)} on {ends}: every seed, the mean, its own "
            f"{comparison.confidence:.0%} interval (thick) and the simultaneous one (thin)"
            if comparison.paired
            else f"Differences to {comparison.baseline} in {metric_title(comparison.metric)} on {ends}: the mean, its own interval "
            "(thick) and the simultaneous one (thin)",
            lambda axis, _: _differences(comparison, axis),
        ),
        (
            "frontier",
            f"{metric} against KL(π ‖ π_ref) on {along}: the path of every seed, a marker where it ends. The axis is even in √KL",
            lambda axis, _: _frontier(comparison, axis, metric),
        ),
        (
            "learning",
            f"Held-out {metric} on {along} while training: mean, and the range of the seeds",
            lambda axis, _: _curves(comparison, axis, lambda run: run.measured(metric), f"held-out {metric}"),
        ),
        (
            "length",
            f"Length against gold reward on {rows_of(comparison.runs)}: a marker for each seed's mean, a line through fifths of "
            "all samples by length",
            lambda axis, _: _length(comparison, axis),
        ),
        (
            "margin",
            "Reward margin on training batches: mean, and the range of the seeds",
            lambda axis, _: _curves(comparison, axis, lambda run: run.series("rewards/margin"), "rewards/margin"),
        ),
        (
            "reward",
            "Reward of rollouts, as it was trained on: mean, and the range of the seeds",
            lambda axis, _: _curves(comparison, axis, lambda run: run.series("rollouts/reward"), "rollouts/reward"),
        ),
    ]
    figures = [
        Figure(name, caption, _figure(name, caption, plot, len(comparison.arms))) for name, caption, plot in panels
    ]
    figures.append(_chosen_and_rejected(comparison))
    return [figure for figure in figures if figure.svg]


def _figure(name: str, caption: str, plot: Callable[[Any, str], bool], arms: int) -> str:
    """A figure as SVG; empty where `plot` has nothing to draw."""
    from matplotlib import pyplot as plt

    height = 3.1 + (0.19 * math.ceil(arms / 2) if name != "differences" else max(0.0, 0.25 * (arms - 6)))
    with plt.rc_context(rc(name)):
        figure, axis = plt.subplots(figsize=(WIDTH, height), layout="constrained")
        drawn = plot(axis, name)
        handles, labels = axis.get_legend_handles_labels()
        if handles:
            figure.legend(handles, labels, loc="outside lower left", ncols=2 if max(map(len, labels)) < 24 else 1)
        text = svg(figure, name, caption) if drawn else ""
        plt.close(figure)
    return text


def _differences(comparison: Comparison, axis: Any) -> bool:
    rows = [row for row in comparison.primary.rows if row.difference and math.isfinite(row.difference.mean.value)]
    style = looks(comparison.arms)
    axis.axvline(0, color=INK, linewidth=0.7, alpha=0.6)
    for place, row in enumerate(rows):
        difference, look = row.difference, style[row.arm]
        assert difference is not None
        axis.plot([difference.low, difference.high], [place] * 2, color=look.colour, linewidth=0.9)
        axis.plot([difference.mean.low, difference.mean.high], [place] * 2, color=look.colour, linewidth=3.2, alpha=0.6)
        axis.plot(difference.mean.value, place, marker="|", color=look.colour, markersize=13, markeredgewidth=2)
        offsets = place + 0.22 + np.zeros(len(difference.values))
        axis.plot(difference.values, offsets, look.marker, color=look.colour, markersize=4, fillstyle="none")
    axis.set_yticks(range(len(rows)), [label(row.arm) for row in rows])
    axis.set_ylim(len(rows) - 0.4, -0.6)
    axis.set_xlabel(f"difference to {label(comparison.baseline)}")
    return bool(rows)


def _frontier(comparison: Comparison, axis: Any, metric: str) -> bool:
    drawn = False
    for arm, look in looks(comparison.arms).items():
        shown: str | None = label(arm)
        for run in comparison.of(arm):
            points = [(max(kl, 0.0), value) for kl, value in run.path(metric) if math.isfinite(kl + value)]
            if not points:
                continue
            x, y = np.array(points).T
            axis.plot(np.sqrt(x), y, look.line, color=look.colour, linewidth=0.9, alpha=0.65)
            axis.plot(np.sqrt(x[-1]), y[-1], look.marker, color=look.colour, markersize=5.5, label=shown, alpha=0.9)
            drawn, shown = True, None
    if drawn:
        top = axis.get_xlim()[1] ** 2
        ticks = [tick for tick in (0, 0.1, 0.5, 1, 2, 3, 5, 10, 20, 50, 100, 200, 500, 1000, 5000) if tick <= top]
        ticks = [t for t in ticks if t == 0 or math.sqrt(t / top) > 0.06]
        axis.set_xticks(np.sqrt(ticks), [f"{tick:g}" for tick in ticks])
        axis.set_xlim(left=-0.02 * math.sqrt(top))
        axis.set_xlabel("KL(π ‖ π_ref), nats a completion")
        axis.set_ylabel(label(metric))
    return drawn


def _curves(
    comparison: Comparison, axis: Any, series: Callable[[RunRecord], tuple[list[int], list[float]]], title: str
) -> bool:
    drawn = False
    for arm, look in looks(comparison.arms).items():
        drawn |= _band(axis, [series(run) for run in comparison.of(arm)], look, label(arm), look.line)
    axis.set_xlabel("step")
    axis.set_ylabel(label(title))
    return drawn


def _band(axis: Any, curves: Sequence[tuple[list[int], list[float]]], look: Look, title: str | None, line: str) -> bool:
    """Mean and range at every step at which some run was measured; a run that ended early counts up to there."""
    by_step: dict[int, list[float]] = {}
    for steps, values in curves:
        for step, value in zip(steps, values, strict=True):
            if math.isfinite(value):
                by_step.setdefault(step, []).append(value)
    if not by_step:
        return False
    at = sorted(by_step)
    ends = [[reduce(by_step[step]) for step in at] for reduce in (min, max)]
    axis.fill_between(at, *ends, color=look.colour, alpha=0.13, linewidth=0)
    few = {"marker": look.marker, "markersize": 4} if len(at) <= 30 else {}
    axis.plot(at, [np.mean(by_step[step]) for step in at], line, color=look.colour, linewidth=1.3, label=title, **few)
    return True


def _length(comparison: Comparison, axis: Any) -> bool:
    drawn = False
    for arm, look in looks(comparison.arms).items():
        samples = [
            [s for s in run.evaluation.samples if None not in (s.get("gold"), s.get("length"))]
            for run in comparison.of(arm)
            if run.evaluation
        ]
        means = [np.mean([[s["length"], s["gold"]] for s in of_run], axis=0) for of_run in samples if of_run]
        if not means:
            continue
        points = np.array([[s["length"], s["gold"]] for of_run in samples for s in of_run])
        fifths = np.array_split(points[np.argsort(points[:, 0], kind="stable")], min(5, len(points)))
        line = np.array([fifth.mean(axis=0) for fifth in fifths])
        axis.plot(*line.T, look.line, color=look.colour, linewidth=1, alpha=0.75)
        axis.plot(*np.array(means).T, look.marker, color=look.colour, markersize=5.5, label=label(arm), alpha=0.9)
        drawn = True
    axis.set_xlabel("length, tokens")
    axis.set_ylabel("gold")
    return drawn


def _chosen_and_rejected(comparison: Comparison) -> Figure:
    """A panel for each arm that learns from pairs; each has units of its own."""
    from matplotlib import pyplot as plt

    caption = "Rewards of chosen (solid) and rejected completions (dashed) on training batches: mean, and the range of the seeds"
    style = looks(comparison.arms)
    arms = [arm for arm in comparison.arms if any(run.series("rewards/chosen")[0] for run in comparison.of(arm))]
    if not arms:
        return Figure("chosen", caption, "")
    rows = math.ceil(len(arms) / 2)
    with plt.rc_context(rc("chosen")):
        figure, axes = plt.subplots(rows, 2, figsize=(WIDTH, 0.5 + 1.5 * rows), squeeze=False, layout="constrained")
        for axis in axes.flat[len(arms) :]:
            axis.set_axis_off()
        for axis, arm in zip(axes.flat, arms, strict=False):
            axis.axhline(0, color=INK, linewidth=0.5, alpha=0.4)
            for which, line in (("chosen", "-"), ("rejected", "--")):
                _band(axis, [run.series(f"rewards/{which}") for run in comparison.of(arm)], style[arm], None, line)
            axis.set_title(label(arm))
        figure.supxlabel("step", fontsize=9)
        text = svg(figure, "chosen", caption)
        plt.close(figure)
    return Figure("chosen", caption, text)
