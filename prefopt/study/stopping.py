"""Asking a study to stop: a file in its folder, for which every job looks before it begins and after every step."""

from pathlib import Path

from prefopt.support.errors import PrefoptError
from prefopt.support.files import write_whole

NOT_STARTED = "not started: the study was asked to stop"
"""What the outcome of a job says that was not begun because of it."""

PAUSED = "paused: the study was asked to stop"
"""And of one that had begun: it has saved a checkpoint, and goes on from there."""

PREEMPTED = "preempted: its place was wanted for something else"
"""And of one that made room: it has saved a checkpoint, too, and whoever runs it begins it again."""


def stop_file(folder: Path) -> Path:
    """The file whose presence asks the study in a folder to stop."""
    return folder / "stop"


def ask_to_stop(folder: Path) -> None:
    """Ask the study in a folder to begin no further job; those that work keep what they have done and end, to be gone on with.

    Raises:
        PrefoptError: there is no study.
    """
    if not (folder / "study.yaml").is_file():
        raise PrefoptError(
            f"{folder} holds no study that has begun: it has no study.yaml, and there is nothing to stop"
        )
    write_whole(
        stop_file(folder),
        "Runs pause, and none begins, while this file is here; the next start of the study removes it.\n",
    )


def asked_to_stop(folder: Path) -> bool:
    """Whether somebody has."""
    return stop_file(folder).exists()
