"""Where the jobs of a study run, by files in its folder: which queue a job was given to, and which machine began it."""

import json
import os
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prefopt.support.files import write_whole


def started_file(folder: Path, name: str, seed: int) -> Path:
    """Written when a job begins: on which machine; the time is that of the file."""
    return folder / "logs" / f"{name}-seed-{seed}.started"


def queued_file(folder: Path, name: str, seed: int) -> Path:
    """Written when a job is given to a queue, and when it goes back into it; the time is that of the file."""
    return folder / "logs" / f"{name}-seed-{seed}.queued"


def note_start(folder: Path, name: str, seed: int, within: str = "") -> None:
    """Say that a job begins on this machine.

    Args:
        folder: of the study.
        name: of the job's arm, stage or trial.
        seed: of the job.
        within: what this process is on a cluster, such as "SLURM job 4711"; empty for a process of the study's own.
    """
    place = {"host": socket.gethostname(), "pid": os.getpid(), "within": within}
    _write(started_file(folder, name, seed), place)


def note_queued(folder: Path, name: str, seed: int, queue: str, id: str, within: str) -> None:
    """Say that a job waits in a queue.

    Args:
        folder: of the study.
        name: of the job's arm, stage or trial.
        seed: of the job.
        queue: which, such as "slurm".
        id: the queue's own of it.
        within: the two in words, as in `note_start`.
    """
    _write(queued_file(folder, name, seed), {"queue": queue, "id": id, "within": within})


def _write(file: Path, place: Mapping[str, Any]) -> None:
    file.parent.mkdir(exist_ok=True)
    write_whole(file, json.dumps(place))


def read_place(file: Path) -> Mapping[str, Any]:
    """What one of these files says; empty where it is not there, or says nothing."""
    try:
        place = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return place if isinstance(place, dict) else {}


def in_words(place: Mapping[str, Any]) -> str:
    """`node7, SLURM job 4711`; empty for a process of a study's own on the machine that asks."""
    if not place.get("within") and place.get("host") == socket.gethostname():
        return ""
    return ", ".join(str(place[key]) for key in ("host", "within") if place.get(key))
