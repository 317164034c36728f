"""live.html: a study while it runs, as a page that loads itself anew and needs no server."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from prefopt.study.report.page import template
from prefopt.study.status import JobStatus, StudyStatus
from prefopt.study.status_table import headline, steps_of, stop_command
from prefopt.support.durations import rough_duration
from prefopt.support.wording import number

REFRESH = 5
"""Seconds after which the page loads itself anew."""
WIDTH, HEIGHT = 240, 90
"""Of a curve, in its own units."""
POINTS = 120
"""At most how many points of a run are in a curve."""
FURTHER = ("rollouts/reward", "rewards/margin", "loss")


class Curves(NamedTuple):
    """A metric of one arm so far.

    Attributes:
        arm: which.
        lines: of each seed, as points of an SVG polyline.
        low: the smallest value.
        high: the largest.
        steps: the last step.
    """

    arm: str
    lines: list[str]
    low: float
    high: float
    steps: int


def live_page(status: StudyStatus) -> str:
    """The page as HTML. All text is escaped."""
    report = status.folder / "report.html"
    return template("live.html.jinja").render(
        status=status,
        headline=headline(status),
        refresh=REFRESH if status.working else None,
        stop=stop_command(status.folder),
        again=f"prefopt study {status.folder / 'study.yaml'} --out {status.folder}",
        steps_of=steps_of,
        rough_duration=rough_duration,
        number=number,
        report=report.exists() and not status.working,
        unfinished=status.of("running", "failed", "interrupted", "waiting"),
        curves=[(name, found) for name in _metrics(status) if (found := curves(status.jobs, name))],
        WIDTH=WIDTH,
        HEIGHT=HEIGHT,
    )


def _metrics(status: StudyStatus) -> list[str]:
    metric = status.metric.removesuffix("_at_kl")
    return [f"validation/{metric}", f"test/{metric}", *FURTHER]


def curves(jobs: Sequence[JobStatus], name: str) -> list[Curves]:
    """A metric of every arm in which a run has two values of it; each arm has an axis of its own, for units may differ."""
    by_arm: dict[str, list[list[tuple[float, float]]]] = {}
    for job in jobs:
        points = [(float(line["step"]), float(line[name])) for line in job.history if _is_number(line, name)]
        if len(points) > 1:
            by_arm.setdefault(job.name, []).append(points)
    return [_drawn(arm, runs) for arm, runs in by_arm.items()]


def _is_number(line: Mapping[str, Any], name: str) -> bool:
    value = line.get(name)
    return isinstance(value, int | float) and math.isfinite(value)


def _drawn(arm: str, runs: Sequence[Sequence[tuple[float, float]]]) -> Curves:
    values = [value for points in runs for _, value in points]
    low, high, last = min(values), max(values), max(points[-1][0] for points in runs)
    lines = []
    for points in runs:
        every = max(1, math.ceil(len(points) / POINTS))
        kept = [*points[::every], points[-1]]
        places = [(WIDTH * x / max(last, 1), HEIGHT * (1 - (y - low) / ((high - low) or 1))) for x, y in kept]
        lines.append(" ".join(f"{x:.1f},{y:.1f}" for x, y in places))
    return Curves(arm, lines, low, high, int(last))
