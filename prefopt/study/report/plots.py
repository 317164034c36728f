"""What each figure of a comparison shows: every function draws on an empty figure, and says which values it has drawn."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from prefopt.runs.records import RunRecord
from prefopt.study.comparison.comparison import Comparison
from prefopt.study.report.style import INK, Look, label, looks
from prefopt.support.wording import interval, number

Series = tuple[list[int], list[float]]
"""Steps, and values at them."""

POINTS = 40
"""At most how many values of an arm in a panel can be pointed at; a curve of thousands of steps would make the page heavy."""


class Point(NamedTuple):
    """A value that was drawn.

    Attributes:
        axis: the panel.
        arm: whose it is.
        x: where, in the panel's units.
        y: where, in the panel's units.
        text: what it is, in words.
    """

    axis: Any
    arm: str
    x: float
    y: float
    text: str


def differences(comparison: Comparison, figure: Any) -> list[Point]:
    """A line for each arm: its seeds, their mean, and two intervals."""
    axis = figure.subplots()
    rows = [row for row in comparison.primary.rows if row.difference and math.isfinite(row.difference.mean.value)]
    style, points = looks(comparison.arms), []
    axis.axvline(0, color=INK, linewidth=0.7, alpha=0.6)
    for place, row in enumerate(rows):
        difference, look = row.difference, style[row.arm]
        assert difference is not None
        mean, same = difference.mean, {"color": look.colour, "gid": look.gid}
        axis.plot([difference.low, difference.high], [place] * 2, linewidth=0.9, **same)
        axis.plot([mean.low, mean.high], [place] * 2, linewidth=3.2, alpha=0.6, **same)
        axis.plot(mean.value, place, marker="|", markersize=13, markeredgewidth=2, **same)
        offsets = place + 0.22 + np.zeros(len(difference.values))
        axis.plot(difference.values, offsets, look.marker, markersize=4, fillstyle="none", **same)
        ends = f" {interval(difference.low, difference.high)}" if difference.low == difference.low else ""
        points.append(Point(axis, row.arm, mean.value, place, f"mean {number(mean.value, signed=True)}{ends}"))
        seeds = zip(difference.seeds, difference.values, offsets, strict=False)
        points += [Point(axis, row.arm, v, y, f"seed {seed}: {number(v, signed=True)}") for seed, v, y in seeds]
    axis.set_yticks(range(len(rows)), [label(row.arm) for row in rows])
    axis.set_ylim(len(rows) - 0.4, -0.6)
    axis.set_xlabel(f"difference to {label(comparison.baseline)}")
    return points


def frontier(comparison: Comparison, figure: Any, metric: str) -> list[Point]:
    """Every seed's path of (√KL, metric), with a marker where it ends."""
    axis, points = figure.subplots(), []
    for arm, look in looks(comparison.arms).items():
        shown: str | None = label(arm)
        for run in comparison.of(arm):
            path = [(max(kl, 0.0), value) for kl, value in run.path(metric) if math.isfinite(kl + value)]
            if not path:
                continue
            x, y = np.array(path).T
            axis.plot(np.sqrt(x), y, look.line, color=look.colour, linewidth=0.9, alpha=0.65, gid=look.gid)
            end = {"color": look.colour, "markersize": 5.5, "alpha": 0.9, "gid": look.gid}
            axis.plot(np.sqrt(x[-1]), y[-1], look.marker, label=shown, **end)
            for kl, value in path:
                said = f"seed {run.seed}: {metric} {number(value)} at KL {number(kl)}"
                points.append(Point(axis, arm, math.sqrt(kl), value, said))
            shown = None
    if points:
        _even_in_square_root(axis)
        axis.set_xlabel("KL(π ‖ π_ref), nats a completion")
        axis.set_ylabel(label(metric))
    return points


def _even_in_square_root(axis: Any) -> None:
    """Ticks of KL on an axis of √KL."""
    top = axis.get_xlim()[1] ** 2
    ticks = [tick for tick in (0, 0.1, 0.5, 1, 2, 3, 5, 10, 20, 50, 100, 200, 500, 1000, 5000) if tick <= top]
    ticks = [t for t in ticks if t == 0 or math.sqrt(t / top) > 0.06]
    axis.set_xticks(np.sqrt(ticks), [f"{tick:g}" for tick in ticks])
    axis.set_xlim(left=-0.02 * math.sqrt(top))


def curves(comparison: Comparison, figure: Any, series: Callable[[RunRecord], Series], title: str) -> list[Point]:
    """All arms on one axis, for values that mean the same in every arm."""
    axis, points = figure.subplots(), []
    for arm, look in looks(comparison.arms).items():
        every = [series(run) for run in comparison.of(arm)]
        points += _band(axis, every, look, arm, look.line, label(arm), title)
    axis.set_ylabel(label(title))
    _steps(axis, "step")
    return points


def panels(
    comparison: Comparison, figure: Any, lines: Mapping[str, str], series: Callable[[RunRecord, str], Series]
) -> list[Point]:
    """A panel with an axis of its own for each arm, for values whose scale is the arm's own.

    Args:
        comparison: of which arms.
        figure: to draw on.
        lines: what is drawn in each panel, with its line, such as `--`.
        series: of a run and one of these.
    """
    style, points = looks(comparison.arms), []
    arms = [arm for arm in comparison.arms if any(series(run, what)[0] for run in comparison.of(arm) for what in lines)]
    if not arms:
        return []
    axes = figure.subplots(math.ceil(len(arms) / 2), 2, squeeze=False)
    for axis in axes.flat[len(arms) :]:
        axis.set_axis_off()
    for axis, arm in zip(axes.flat, arms, strict=False):
        axis.axhline(0, color=INK, linewidth=0.5, alpha=0.4)
        for what, line in lines.items():
            every = [series(run, what) for run in comparison.of(arm)]
            points += _band(axis, every, style[arm], arm, line, None, what)
        axis.set_title(label(arm))
        _steps(axis)
    figure.supxlabel("step", fontsize="medium")
    return points


def _steps(axis: Any, title: str = "") -> None:
    """Steps are whole numbers, however few there are."""
    from matplotlib.ticker import MaxNLocator

    axis.xaxis.set_major_locator(MaxNLocator(nbins="auto", steps=[1, 2, 5, 10], integer=True, min_n_ticks=1))
    axis.set_xlabel(title)


def _band(
    axis: Any, every: Sequence[Series], look: Look, arm: str, line: str, title: str | None, what: str
) -> list[Point]:
    """Mean and range at every step at which some run was measured; a run that ended early counts up to there."""
    by_step: dict[int, list[float]] = {}
    for steps, values in every:
        for step, value in zip(steps, values, strict=True):
            if math.isfinite(value):
                by_step.setdefault(step, []).append(value)
    if not by_step:
        return []
    at = sorted(by_step)
    ends = [[reduce(by_step[step]) for step in at] for reduce in (min, max)]
    axis.fill_between(at, *ends, color=look.colour, alpha=0.13, linewidth=0, gid=look.gid)
    few = {"marker": look.marker, "markersize": 4} if len(at) <= 30 else {}
    means = {step: float(np.mean(by_step[step])) for step in at}
    axis.plot(at, list(means.values()), line, color=look.colour, linewidth=1.3, label=title, gid=look.gid, **few)
    return [Point(axis, arm, step, means[step], _said(what, step, by_step[step])) for step in _thinned(at)]


def _said(what: str, step: int, values: Sequence[float]) -> str:
    spread = f" ({number(min(values))} to {number(max(values))} over {len(values)} seeds)" if len(values) > 1 else ""
    return f"step {step}: {what} {number(float(np.mean(values)))}{spread}"


def _thinned(steps: Sequence[int]) -> Iterator[int]:
    """Both ends, and evenly between them."""
    places = np.linspace(0, len(steps) - 1, min(len(steps), POINTS)).round().astype(int)
    return (steps[place] for place in dict.fromkeys(places.tolist()))


def length(comparison: Comparison, figure: Any) -> list[Point]:
    """Mean length and gold reward of every seed, and of fifths of all samples by length."""
    axis, points = figure.subplots(), []
    for arm, look in looks(comparison.arms).items():
        by_run = {
            run.seed: [s for s in run.evaluation.samples if None not in (s.get("gold"), s.get("length"))]
            for run in comparison.of(arm)
            if run.evaluation
        }
        means = {seed: np.mean([[s["length"], s["gold"]] for s in of], axis=0) for seed, of in by_run.items() if of}
        if not means:
            continue
        samples = np.array([[s["length"], s["gold"]] for of_run in by_run.values() for s in of_run])
        fifths = np.array_split(samples[np.argsort(samples[:, 0], kind="stable")], min(5, len(samples)))
        line = np.array([fifth.mean(axis=0) for fifth in fifths])
        axis.plot(*line.T, look.line, color=look.colour, linewidth=1, alpha=0.75, gid=look.gid)
        marks = {"color": look.colour, "markersize": 5.5, "alpha": 0.9, "gid": look.gid}
        axis.plot(*np.array(list(means.values())).T, look.marker, label=label(arm), **marks)
        points += [
            Point(axis, arm, x, y, f"seed {seed}: {number(x)} tokens, gold {number(y)}")
            for seed, (x, y) in means.items()
        ]
    axis.set_xlabel("length, tokens")
    axis.set_ylabel("gold")
    return points
