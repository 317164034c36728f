"""What a study is made of: runs, and labellings between them. Each knows whether it is done, and how it is checked and made."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from prefopt import recipe
from prefopt.recipe import Recipe
from prefopt.runs.label.recipe import LabelRecipe, in_the_way, load_label_recipe


@dataclass(frozen=True)
class _Made:
    """What is made in a folder of its own, by a recipe.

    Attributes:
        name: of the arm, stage or trial.
        seed: of the study, for which it is made.
        folder: where.
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
    def done(self) -> bool:
        """Whether it came to its end."""
        return finished(self.folder)


@dataclass(frozen=True)
class Job(_Made):
    """One run of a study, in its run folder."""

    recipe: Recipe

    def check(self) -> None:
        """Refuse what can be known to be wrong before a model is loaded.

        Raises:
            PrefoptError: a recipe, data or model that will not do.
        """
        from prefopt.runs.planning import plan

        plan(self.recipe)

    def drifted(self) -> list[str]:
        """The fields in which what is in the folder was begun with another recipe."""
        from prefopt.runs.folder import RunFolder

        files = RunFolder(self.folder)
        if not files.begun:
            return []
        before, now = (r.model_dump(mode="json") for r in (files.recipe(), self.recipe))
        return recipe.differences(before, now)

    def make(self, console: Console) -> None:
        """Begin it, or go on from its last checkpoint; without one, begin again in the same folder."""
        from prefopt.runs.run import run

        run(self.recipe, self.folder, resume=(self.folder / "recipe.yaml").exists(), console=console)

    def came_to(self, metric: str) -> list[str]:
        """The metric at its end, in words; nothing where it has none, as a reward model has no gold."""
        after = json.loads((self.folder / "summary.json").read_text())["after"].get(metric)
        value = after["value"] if isinstance(after, dict) else after
        return [] if value is None else [f"{metric} {value:.3f}"]


@dataclass(frozen=True)
class Labels(_Made):
    """One labelling of a study, in a folder that will have data.jsonl."""

    recipe: LabelRecipe

    def check(self) -> None:
        """Refuse what can be known to be wrong before a model is loaded.

        Raises:
            PrefoptError: a feedback, data or model that will not do.
        """
        from prefopt.runs.label.labelling import rows_of

        rows_of(self.recipe)

    def drifted(self) -> list[str]:
        """The fields in which what is in the folder was begun with another recipe."""
        file = self.folder / "recipe.yaml"
        return in_the_way(load_label_recipe(file), self.recipe) if file.exists() else []

    def make(self, console: Console) -> None:
        """Begin it, or go on after what is labelled already."""
        from prefopt.runs.label.labelling import label

        label(self.recipe, self.folder, console)

    def came_to(self, metric: str) -> list[str]:
        """How much was labelled, in words."""
        counts = json.loads((self.folder / "manifest.json").read_text())["counts"]
        lost = counts["prompts_missing"]
        return [f"{counts['prompts']} prompts labelled", *([f"{lost} without a verdict"] if lost else [])]


Piece = Job | Labels


def finished(folder: Path) -> bool:
    """Whether what is made in a folder came to its end: a run has its summary then, a labelling a mark in its manifest."""
    if (folder / "summary.json").exists():
        return True
    manifest = folder / "manifest.json"
    return manifest.exists() and "finished" in json.loads(manifest.read_text(encoding="utf-8"))
