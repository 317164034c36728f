"""To which runs a result can be added, and under which name; known, and refused, before torch is imported."""

import re
from pathlib import Path

from prefopt.runs.additions import for_each
from prefopt.runs.folder import RunFolder
from prefopt.runs.records import find_runs
from prefopt.support.errors import PrefoptError


def result_name(called: str | None, of: str) -> str:
    """The name of a result: as it is called, or that of its rows or tasks.

    Raises:
        PrefoptError: it could be no file's.
    """
    name = called or of
    if not re.fullmatch(r"\w[\w.-]*", name):
        raise PrefoptError(f"{name!r} is no name for a result; it has letters, digits, and _ . - alone")
    return name


def name_of_rows(data: str) -> str:
    """What the result on a file's rows is called."""
    return re.sub(r"[^\w.-]+", "-", Path(data).stem)


def name_of_tasks(names: str) -> str:
    """What the result of tasks is called; commas between their names."""
    return names.replace(",", "-").replace("*", "")


def refuse_adding(name: str | Path, called: str) -> None:
    """Refuse to add where it cannot be, before anything is measured.

    Raises:
        PrefoptError: no finished run, or it has a result of this name.
    """
    run = RunFolder(Path(name))
    if not run.finished:
        what = "is not finished" if run.begun else "is no run folder"
        raise PrefoptError(
            f"--add keeps the result in a finished run's folder, and {name} {what}; --out writes a file anywhere"
        )
    if (file := run.measured_file(called)).exists():
        raise PrefoptError(
            f"{file} is there already, and nothing is overwritten: give another name with --name, or remove it"
        )


def runs_to_add_to(target: Path, called: str) -> tuple[list[Path], list[str]]:
    """A run folder, or the finished runs of a study or a folder of runs that have no result of this name yet.

    Returns:
        Their folders, and a sentence on each run that is left out.

    Raises:
        PrefoptError: `refuse_adding` refuses it for a run folder, or for all of several runs.
    """
    try:
        runs = find_runs([target])
    except PrefoptError:
        refuse_adding(target, called)
        raise
    taken, left_out = for_each(runs, lambda run: refuse_adding(run.folder, called))
    return [run.folder for run, _ in taken], left_out
