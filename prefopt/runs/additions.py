"""What is to be measured of a finished run beyond what its recipe names; known, and refused, before torch is imported."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from prefopt import recipe
from prefopt.runs.folder import OF_SETS, RunFolder
from prefopt.runs.records import RunOfArm, find_runs
from prefopt.support.errors import PrefoptError

T = TypeVar("T")

KEYS = re.compile(r"evaluate\.(?:(gold)|metrics\.(\w+)|sets\.([\w-]+))")
"""What can be added: a gold reward where there was none, metrics and sets of new names."""


@dataclass(frozen=True)
class Additions:
    """What is added to one run.

    Attributes:
        folder: of the run.
        settings: its recipe with the additions.
        overrides: as they were given.
        metrics: names of what measures samples, `gold` among them.
        sets: names of further held-out sets.
    """

    folder: RunFolder
    settings: recipe.Recipe
    overrides: Sequence[str]
    metrics: Sequence[str]
    sets: Sequence[str]

    @property
    def names(self) -> list[str]:
        """Of the files that will hold what is measured."""
        return [*self.metrics, *(f"{OF_SETS}{name}" for name in self.sets)]


def additions_of(folder: Path, overrides: Sequence[str]) -> Additions:
    """What the overrides add to what a run has measured.

    Raises:
        PrefoptError: the run is not finished; nothing is added; something else would change; it is measured already.
    """
    run = RunFolder(folder)
    begun, now = run.recipe(), run.recipe(overrides)
    if not run.finished:
        raise PrefoptError(f"{folder} is not finished: prefopt run {folder} --resume")
    changed = recipe.material_differences(begun, now, recipe.OF_RUNS)
    added = {key: match for key, (before, _) in changed.items() if before is None and (match := KEYS.fullmatch(key))}
    if other := [key for key in changed if key not in added]:
        raise PrefoptError(
            f"--add measures what the run did not, and {other[0]} would change how it was measured: add evaluate.metrics.NAME, "
            "evaluate.sets.NAME or evaluate.gold, each new"
        )
    metrics = [name for match in added.values() for name in match.groups()[:2] if name]
    additions = Additions(run, now, overrides, metrics, [match[3] for match in added.values() if match[3]])
    if not added:
        given = " and ".join(override.partition("=")[0] for override in overrides)
        raise PrefoptError(
            f"{folder} has measured {given} already"
            if given
            else "--add wants something to measure, such as evaluate.metrics.polite=file.py:function"
        )
    for name in additions.names:
        if (file := run.measured_file(name)).exists():
            raise PrefoptError(
                f"{name.removeprefix(OF_SETS)} is measured already, in {file}, and nothing is overwritten"
            )
    return additions


def additions_to(target: Path, overrides: Sequence[str]) -> tuple[list[tuple[RunOfArm, Additions]], list[str]]:
    """The same for a run folder, or for all finished runs of a study or a folder of runs.

    Runs that have it already are passed over, so that what was interrupted can be gone on with.

    Returns:
        What is added to which run, and a sentence on each run that is left out.

    Raises:
        PrefoptError: `additions_of` refuses it for a run folder, or for all of several runs.
    """
    return for_each(find_runs([target]), lambda run: additions_of(run.folder, overrides))


def for_each(runs: Sequence[RunOfArm], look: Callable[[RunOfArm], T]) -> tuple[list[tuple[RunOfArm, T]], list[str]]:
    """What is to be done to each of several runs that can be taken.

    Args:
        runs: at least one.
        look: what is done to a run; refuses one that cannot be taken.

    Returns:
        Each run that is taken, with what `look` returned; and a sentence on each run that is left out.

    Raises:
        PrefoptError: every run is refused; the last one's sentence.
    """
    taken, refused = [], []
    for run in runs:
        try:
            taken.append((run, look(run)))
        except PrefoptError as error:
            if not taken and run is runs[-1]:
                raise
            refused.append(str(error))
    return taken, refused
