"""Which folder a run may be in; known, and refused, before torch is imported."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from prefopt import recipe
from prefopt.runs.extending import LENGTH, refuse_extension
from prefopt.runs.folder import RunFolder
from prefopt.support.errors import PrefoptError
from prefopt.support.files import is_empty, locked, unused


@contextmanager
def claimed(settings: recipe.Recipe, folder: Path | None, resume: bool) -> Iterator[RunFolder]:
    """The run folder, for this run alone.

    Raises:
        PrefoptError: it holds another run, this one is finished, or another process works in it.
    """
    path = unused(_usual_folder(settings)) if folder is None else folder
    files, resumed = RunFolder(path), settings if resume else None
    refuse_taken(files, resumed)
    with locked(path):
        refuse_taken(files, resumed)  # another process may have just left it
        yield files


def refuse_taken(folder: RunFolder, resumed: recipe.Recipe | None) -> None:
    """A new run wants a new folder; a resumed one a folder of the same recipe that has not come to its end, or is to be longer.

    Raises:
        PrefoptError: it is another.
    """
    if resumed is None:
        if not is_empty(folder.path):
            raise PrefoptError(
                f"{folder} is there already, and nothing is overwritten: name another, or resume it with --resume"
            )
        return
    different = recipe.material_differences(folder.recipe(), resumed, recipe.OF_RUNS)
    if others := [key for key in different if key not in LENGTH]:
        raise PrefoptError(
            f"{folder} was run with another recipe; it differs in {', '.join(others)}. To go on as it began: prefopt run "
            f"{folder} --resume"
        )
    if different:
        refuse_extension(folder, resumed)
    elif folder.finished:
        folder.summary()  # one that is damaged says so
        raise PrefoptError(
            f"{folder} is finished: its results are in summary.json. To train on: prefopt run {folder} --resume train.steps=N"
        )


def unfinished(settings: recipe.Recipe) -> Path:
    """The newest run folder of this name and seed that has not come to its end.

    Raises:
        PrefoptError: there is none.
    """
    usual = _usual_folder(settings)
    base, pattern = usual.parent, re.compile(re.escape(usual.name) + r"(-\d+)?$")
    runs = [RunFolder(f) for f in base.iterdir() if pattern.match(f.name)] if base.is_dir() else []
    open_ones = [run.path for run in runs if run.begun and not run.finished]
    if not open_ones:
        raise PrefoptError(f"nothing to resume: no unfinished run of {settings.name} (seed {settings.seed}) in {base}/")
    return max(open_ones, key=lambda f: f.stat().st_mtime)


def _usual_folder(settings: recipe.Recipe) -> Path:
    return Path(settings.track.folder) / f"{settings.name}-seed{settings.seed}"
