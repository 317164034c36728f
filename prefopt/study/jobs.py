"""The jobs of a study: runs, and labellings whose data sets runs may learn from."""

import abc
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from prefopt import recipe
from prefopt.recipe import Recipe
from prefopt.runs.folder import RunFolder
from prefopt.runs.label.recipe import LabelRecipe, in_the_way, load_label_recipe
from prefopt.runs.records import RunOfArm, read_run
from prefopt.support.wording import number


@dataclass(frozen=True)
class Job(abc.ABC):
    """One piece of a study's work, which writes a folder of its own. It can be pickled and run on another machine.

    Attributes:
        name: of the arm, stage or trial.
        seed: which of the study's seeds it is for.
        folder: what it writes; absolute.
        recipe: resolved.
        after: folders of stages that it reads from.
    """

    name: str
    seed: int
    folder: Path
    recipe: Any
    after: tuple[Path, ...] = ()

    def __str__(self) -> str:
        return f"{self.name} seed {self.seed}"

    @property
    def finished(self) -> bool:
        """Whether its folder says that it came to its end."""
        return is_finished(self.folder)

    @property
    def study_folder(self) -> Path:
        """The folder with study.yaml, in whose `arms`, `stages` or `tuning` the job's folder is."""
        return next(
            folder.parent
            for folder in self.folder.parents
            if folder.name in ("arms", "stages", "tuning") and (folder.parent / "study.yaml").exists()
        )

    @abc.abstractmethod
    def check(self) -> Sequence[str]:
        """Refuse what can be known to be wrong before a model is loaded.

        Returns:
            The held-out metrics that it will measure.

        Raises:
            PrefoptError: a recipe, feedback, data or model that cannot be used.
        """

    @abc.abstractmethod
    def changed_fields(self) -> list[str]:
        """Dotted fields of the recipe that differ from those with which the folder was begun; empty where nothing was."""

    @abc.abstractmethod
    def run(self, console: Console, pause: Callable[[], bool] | None = None) -> None:
        """Run it, or continue it where its folder holds an unfinished one.

        Args:
            console: where a person follows it.
            pause: whether to keep what is done and end.

        Raises:
            Paused: as it was asked.
        """

    @abc.abstractmethod
    def summary(self, metric: str) -> list[str]:
        """The result of a finished job, in a few words for the progress line; may be empty."""


@dataclass(frozen=True)
class RunJob(Job):
    """One run. Interrupted, it continues from its last checkpoint; without a checkpoint it starts again in the same folder."""

    recipe: Recipe

    def check(self) -> Sequence[str]:  # noqa: D102
        from prefopt.runs.held_out_metrics import held_out_metrics
        from prefopt.runs.planning import plan

        planned = plan(self.recipe)
        held_out = planned.parts[self.recipe.evaluate.part]
        return held_out_metrics(self.recipe, planned.needs.rewards, held_out, planned.sets)

    def changed_fields(self) -> list[str]:  # noqa: D102
        files = RunFolder(self.folder)
        if not files.begun:
            return []
        return list(recipe.material_differences(files.recipe(), self.recipe, recipe.OF_RUNS))

    def run(self, console: Console, pause: Callable[[], bool] | None = None) -> None:  # noqa: D102
        from prefopt.runs.run import run

        run(self.recipe, self.folder, resume=(self.folder / "recipe.yaml").exists(), console=console, pause=pause)

    def summary(self, metric: str) -> list[str]:
        """The metric at the end; empty for a run that does not measure it: a reward model has no gold reward."""
        value = read_run(RunOfArm(self.name, self.seed, self.folder)).after.get(metric, math.nan)
        return [] if math.isnan(value) else [f"{metric} {number(value)}"]


@dataclass(frozen=True)
class LabelJob(Job):
    """One labelling, which leaves data.jsonl in its folder. Interrupted, it continues after the prompts that are labelled."""

    recipe: LabelRecipe

    def check(self) -> Sequence[str]:  # noqa: D102
        from prefopt.runs.label.labelling import rows_of

        rows_of(self.recipe)
        return ()

    def changed_fields(self) -> list[str]:  # noqa: D102
        file = self.folder / "recipe.yaml"
        return in_the_way(load_label_recipe(file), self.recipe) if file.exists() else []

    def run(self, console: Console, pause: Callable[[], bool] | None = None) -> None:  # noqa: D102
        from prefopt.runs.label.labelling import label

        label(self.recipe, self.folder, console, pause)

    def summary(self, metric: str) -> list[str]:
        """How many prompts were labelled."""
        counts = RunFolder(self.folder).manifest()["counts"]
        missing = counts["prompts_missing"]
        return [f"{counts['prompts']} prompts labelled", *([f"{missing} without a verdict"] if missing else [])]


def is_finished(folder: Path) -> bool:
    """Whether the job in a folder came to its end: a run then has summary.json, a labelling `finished` in its manifest.json."""
    files = RunFolder(folder)
    return files.finished or "finished" in files.manifest()
