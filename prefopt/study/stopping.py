"""Asking a study to stop: a file in its folder, which every job looks for before it begins, wherever it runs."""

from pathlib import Path

from prefopt.support.errors import PrefoptError
from prefopt.support.files import write_whole

NOT_STARTED = "not started: the study was asked to stop"
"""What the outcome of a job says that was not begun because of it."""


def stop_file(folder: Path) -> Path:
    """The file whose presence asks the study in a folder to stop."""
    return folder / "stop"


def ask_to_stop(folder: Path) -> None:
    """Ask the study in a folder to begin no further job; those that work come to their end.

    Raises:
        PrefoptError: there is no study.
    """
    if not (folder / "study.yaml").is_file():
        raise PrefoptError(f"{folder} holds no study: it has no study.yaml")
    write_whole(
        stop_file(folder), "The study begins no further run while this file is here; its next start removes it.\n"
    )


def asked_to_stop(folder: Path) -> bool:
    """Whether somebody has."""
    return stop_file(folder).exists()
