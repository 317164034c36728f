"""What a study says of itself while it runs: jobs.json for `--status`, and live.html, a page that is kept up to date."""

import json
import os
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from prefopt.study.jobs import Job, RunJob
from prefopt.study.plan import StudyPlan
from prefopt.study.status import jobs_file, read_status
from prefopt.study.stopping import stop_file
from prefopt.support.errors import PrefoptError
from prefopt.support.files import write_whole

EVERY = 5.0
"""Seconds between two versions of the page; more where reading the runs takes more than a twentieth of that."""


@contextmanager
def announced(planned: StudyPlan, jobs: Sequence[Job], processes: int | None, options: str = "") -> Iterator[None]:
    """Say in the study's folder that this process works on these jobs, and keep live.html; an earlier wish to stop is over.

    Args:
        planned: the study.
        jobs: all of them, in the order in which they begin.
        processes: how many of them run at once; None where an executor of one's own decides it.
        options: of the command line that say where they run, for whoever goes on with them.
    """
    stop_file(planned.folder).unlink(missing_ok=True)
    content = _content(planned, jobs, processes) | {"options": options}
    write_whole(jobs_file(planned.folder), json.dumps(content, indent=1))
    over = threading.Event()
    keeper = threading.Thread(target=_keep_page, args=(planned, over), daemon=True)
    keeper.start()
    try:
        yield
    finally:
        over.set()
        keeper.join()
        content["process"]["ended"] = time.time()
        with suppress(
            OSError
        ):  # a full disk: what its runs say of it counts, and that this process is gone is seen anyway
            write_whole(jobs_file(planned.folder), json.dumps(content, indent=1))
        _write_page(planned)


def _content(planned: StudyPlan, jobs: Sequence[Job], processes: int | None) -> dict[str, Any]:
    process = {"pid": os.getpid(), "host": socket.gethostname(), "started": time.time(), "ended": None}
    study = planned.study
    return {
        "title": study.question or study.name,
        "metric": study.primary_metric,
        "process": process | {"processes": processes},
        "jobs": [
            {
                "name": job.name,
                "seed": job.seed,
                "folder": str(job.folder.relative_to(planned.folder)),
                "kind": "run" if isinstance(job, RunJob) else "label",
                "steps": job.recipe.train.steps if isinstance(job, RunJob) else None,
            }
            for job in jobs
        ],
    }


def _keep_page(planned: StudyPlan, over: threading.Event) -> None:
    pause = 0.0
    while not over.wait(pause):
        began = time.monotonic()
        _write_page(planned)
        pause = max(EVERY, 20 * (time.monotonic() - began))


def _write_page(planned: StudyPlan) -> None:
    """A version of the page; a full disk or a file that is being written must not end the study."""
    from prefopt.study.report.live_page import live_page

    with suppress(OSError, PrefoptError):
        write_whole(planned.folder / "live.html", live_page(read_status(planned.folder)))
