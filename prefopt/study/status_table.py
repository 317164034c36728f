"""The status of a study in a terminal, once or until it has ended."""

import time
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from prefopt.study.status import JobStatus, State, StudyStatus, read_status
from prefopt.support.durations import rough_duration

WIDE = 76
"""Columns from which there is room for the rate."""
WAITING = 8
"""How many jobs that have not begun are listed; the rest is counted."""


def headline(status: StudyStatus) -> str:
    """Counts of the states, and the time that is left."""
    states: tuple[State, ...] = ("running", "waiting", "interrupted", "failed")
    counts = [f"{len(status.of('finished'))} of {len(status.jobs)} runs finished"]
    counts += [f"{len(status.of(state))} {state}" for state in states if status.of(state)]
    if not status.working and status.of("running", "waiting", "interrupted"):
        return " · ".join([*counts, "nobody works on it"])
    if status.stopping:
        return " · ".join([*counts, "asked to stop: no further run begins"])
    left = [] if not status.left else [f"about {rough_duration(status.left)} left"]
    return " · ".join([*counts, *left])


def status_of(status: StudyStatus, console: Console) -> Group:
    """The headline, a row for each job that is not finished, and why some failed."""
    unfinished = status.of("running", "failed", "interrupted")
    waiting = status.of("waiting")
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), show_header=True)
    wide = console.width >= WIDE
    shown = [*unfinished, *waiting[:WAITING]]
    places = ["where"] if any(job.where for job in shown) else []
    for heading in ("run", "state", "step", *(["steps/s"] if wide else []), "left", *places):
        right = heading in ("step", "steps/s", "left")
        table.add_column(heading, justify="right" if right else "left", overflow="fold", no_wrap=right)
    for job in shown:
        table.add_row(*_row(job, wide), *([Text(job.where)] if places else []))
    lines = [f"and {len(waiting) - WAITING} more that wait"] if len(waiting) > WAITING else []
    lines += [f"{job}: {job.trouble}" for job in status.of("failed")]
    parts: list[RenderableType] = [Text(status.title, style="bold"), Text(headline(status))]
    parts += [table] if unfinished or waiting else []
    return Group(*parts, *map(Text, lines))


def advice(status: StudyStatus) -> list[str]:
    """What can be done next, and where more is to be seen."""
    if status.working:
        page = f"page      {status.folder / 'live.html'}"
        return [page] if status.stopping else [page, f"to stop   {stop_command(status.folder)}"]
    report = status.folder / "report.html"
    if status.of("running", "waiting", "interrupted", "failed"):
        command = f"prefopt study {status.folder / 'study.yaml'} --out {status.folder} {status.options}"
        return [f"to go on  {command.strip()}"]
    return [f"report    {report}"] if report.exists() else []


def stop_command(folder: Path) -> str:
    """What asks the study in a folder to stop."""
    return f"prefopt study {folder} --stop"


def _row(job: JobStatus, wide: bool) -> Iterator[Text]:
    yield Text(str(job))
    style = {"failed": "red", "interrupted": "yellow", "running": "green"}.get(job.state, "")
    yield Text(job.state, style=style)
    yield Text(steps_of(job))
    if wide:
        yield Text(f"{job.rate:.2g}" if job.rate and job.state == "running" else "")
    yield Text(rough_duration(job.left) if job.left else "")


def steps_of(job: JobStatus) -> str:
    """`12/40`; empty for a run that does not train, or of which nothing is known."""
    if not job.steps:
        return str(job.step) if job.step else ""
    return f"{job.step}/{job.steps}"


def show_status(console: Console, folder: Path) -> None:
    """Print it once."""
    _print(console, read_status(folder))


def _print(console: Console, status: StudyStatus) -> None:
    console.print(status_of(status, console))
    for line in advice(status):
        console.print(Text(line, style="dim"), soft_wrap=True)


def watch(console: Console, folder: Path) -> None:
    """Show it until nobody works on the study any more; where there is no terminal, a line whenever a count changes."""
    status, before = read_status(folder), ""
    if not console.is_terminal:
        while status.working:
            if (line := headline(status).partition(" · about")[0]) != before:
                console.print(headline(status), soft_wrap=True)
            before = line
            status = _later(folder)
        return _print(console, status)
    with Live(console=console, auto_refresh=False, transient=True) as live:
        while status.working:
            shown = Group(status_of(status, console), *(Text(line, style="dim") for line in advice(status)))
            live.update(shown, refresh=True)
            status = _later(folder)
    _print(console, status)


def _later(folder: Path) -> StudyStatus:
    """After a second, or more where reading the runs takes long."""
    began = time.monotonic()
    status = read_status(folder)
    time.sleep(max(1.0, 5 * (time.monotonic() - began)))
    return status
