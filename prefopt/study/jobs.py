"""From a study to its runs and labellings: which recipe, which seed, which folder."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import yaml

from prefopt import recipe
from prefopt.recipe import Recipe, Section, Wandb
from prefopt.runs.accounting import labels_per_prompt
from prefopt.runs.label.recipe import LabelRecipe
from prefopt.study.job import Job, Labels, Piece
from prefopt.study.spec import CHANCES, Study, Varied
from prefopt.support.errors import PrefoptError

Kind = TypeVar("Kind", bound=Section)


@dataclass(frozen=True)
class Jobs:
    """The runs of a study in a folder.

    Attributes:
        study: what it is.
        folder: where it is kept; absolute, for arms name the folders of stages.
    """

    study: Study
    folder: Path
    _trees: dict[str, dict[str, Any]] = field(default_factory=dict, repr=False, compare=False)

    def arms(self, chosen: Mapping[str, Mapping[str, Any]] | None = None) -> list[Job]:
        """Every arm with every seed; the first seed of all before the second of any.

        Args:
            chosen: settings of tuned arms.

        Raises:
            PrefoptError: an arm is no recipe; names the arm.
        """
        every = self.study.all_arms()
        return [
            self._job(arm, name, seed, self.folder / "arms" / name / f"seed-{seed}", (chosen or {}).get(name, {}))
            for seed in self.study.seeds
            for name, arm in every.items()
        ]

    def stages(self) -> list[list[Piece]]:
        """What is made first: a list for each stage, for a later one may need an earlier one."""
        return [
            [
                self._made_first(name, seed)
                for seed in ([self.study.seeds[0]] if stage.per == "study" else self._all_seeds())
            ]
            for name, stage in self.study.stages.items()
        ]

    def trial(self, arm: str, number: int, seed: int, settings: Mapping[str, Any]) -> Job:
        """One trial of an arm's settings, measured on validation rows and not logged to W&B."""
        folder = self.folder / "tuning" / arm / f"trial-{number}" / f"seed-{seed}"
        settings = {**settings, "evaluate.part": "validation"}
        job = self._job(self.study.all_arms()[arm], f"{arm} trial {number}", seed, folder, settings)
        # Here and not in the settings, for the study's own `wandb` comes after them.
        track = job.recipe.track.model_copy(update={"wandb": None})
        return replace(job, recipe=job.recipe.model_copy(update={"track": track}))

    def _all_seeds(self) -> tuple[int, ...]:
        return self.study.seeds + (self.study.tune.seeds if self.study.tune else ())

    def _stage(self, name: str, seed: int) -> Path:
        folder = self.folder / "stages" / name
        return folder if self.study.stages[name].per == "study" else folder / f"seed-{seed}"

    def _job(self, arm: Varied, name: str, seed: int, folder: Path, settings: Mapping[str, Any]) -> Job:
        """A run of an arm."""
        where = f"arm {name}"
        tree = self._tree(arm, name, seed, where, settings)
        resolved, after = self._resolved(Recipe, tree, where, self._stages(seed))
        return Job(name, seed, folder, self._tracked(_one_thread(self._held(resolved, where))), after)

    def _made_first(self, name: str, seed: int) -> Piece:
        """A run or a labelling of a stage; those before it can be named in it."""
        stage, folder, called = self.study.stages[name], self._stage(name, seed), f"stage {name}"
        earlier = self._stages(seed, before=name)
        if stage.label is None:
            resolved, after = self._resolved(Recipe, self._tree(stage, called, seed, called, {}), called, earlier)
            return Job(called, seed, folder, self._tracked(_one_thread(resolved)), after)
        tree = recipe.refined(self._read(stage.label), stage.fields, called)
        drawn = seed if "sampling" in self.study.chance else self.study.seeds[0]
        tree |= {"name": called.replace(" ", "-"), "seed": drawn}
        labels, after = self._resolved(LabelRecipe, tree, called, earlier)
        return Labels(called, seed, folder, labels.model_copy(update={"threads": labels.threads or 1}), after)

    def _stages(self, seed: int, before: str | None = None) -> dict[str, Path]:
        """The folder of every stage, or of those before one, as a run of this seed reads them."""
        names = list(self.study.stages)
        return {name: self._stage(name, seed) for name in names[: None if before is None else names.index(before)]}

    def _tree(self, varied: Varied, name: str, seed: int, where: str, settings: Mapping[str, Any]) -> dict[str, Any]:
        """The recipe of a run with all changes to it."""
        study = self.study
        given = varied.recipe if varied.recipe is not None else study.recipe
        if given is None:
            raise PrefoptError("there is no recipe to vary: give one in `recipe`, the stage's or the study's")
        tree = recipe.refined(self._read(given), study.common, f"common, in {where}")
        tree = recipe.refined(tree, {**varied.fields, **settings}, where)
        fixed = {chance: study.seeds[0] for chance in CHANCES if chance not in study.chance}
        return tree | {"name": name.replace(" ", "-"), "seed": seed, "seeds": fixed | (tree.get("seeds") or {})}

    def _resolved(
        self, kind: type[Kind], tree: Mapping[str, Any], where: str, stages: Mapping[str, Path]
    ) -> tuple[Kind, tuple[Path, ...]]:
        """The tree as a recipe of this kind, and the folders of those stages that it names."""
        whole = {**tree, "variables": {**(tree.get("variables") or {}), **self.study.variables}}
        texts = "\n".join(_texts(whole))
        after = tuple(folder for stage, folder in stages.items() if f"${{stages.{stage}}}" in texts)
        variables = {f"stages.{stage}": str(folder) for stage, folder in stages.items()}
        return recipe.checked(kind, recipe.interpolated(whole, variables), where), after

    def _read(self, given: str | Mapping[str, Any]) -> dict[str, Any]:
        """A recipe that is varied; a file is read once."""
        if not isinstance(given, str):
            return recipe.refined({}, given, "recipe")
        if given not in self._trees:
            file = str(recipe.interpolated({"file": given, "variables": self.study.variables})["file"])
            self._trees[given] = recipe.read(file)
        return self._trees[given]

    def _held(self, settings: Recipe, where: str) -> Recipe:
        """With as many steps as the budget allows."""
        if self.study.hold is None or settings.train.steps == 0:
            return settings
        assert self.study.hold.labels is not None
        each = labels_per_prompt(settings) * settings.train.batch_size
        if not each or self.study.hold.labels % each:
            raise PrefoptError(
                f"{where}: a batch takes {each} labels, of which hold.labels = {self.study.hold.labels} is no multiple"
                + (": nothing is labelled in it" if not each else "; change one of the two")
            )
        steps = {"steps": self.study.hold.labels // each, "epochs": None}
        return settings.model_copy(update={"train": settings.train.model_copy(update=steps)})

    def _tracked(self, settings: Recipe) -> Recipe:
        """In the study's group at W&B."""
        wandb = settings.track.wandb or self.study.wandb
        if wandb is None:
            return settings
        name = {"group": wandb.group or self.study.name, "name": f"{settings.name}-seed{settings.seed}"}
        track = settings.track.model_copy(update={"wandb": Wandb(**{**wandb.model_dump(), **name})})
        return settings.model_copy(update={"track": track})


def _one_thread(settings: Recipe) -> Recipe:
    """With one CPU thread where the recipe leaves it open, so that results do not depend on the number of processes."""
    if settings.train.threads is not None:
        return settings
    return settings.model_copy(update={"train": settings.train.model_copy(update={"threads": 1})})


def _texts(tree: Any) -> list[str]:
    if isinstance(tree, dict | list):
        return [text for item in (tree.values() if isinstance(tree, dict) else tree) for text in _texts(item)]
    return [tree] if isinstance(tree, str) else []


def changed_declarations(study: Study, folder: Path) -> Sequence[str]:
    """What a study in this folder has declared before and may not change now; empty where nothing was."""
    file = folder / "study.yaml"
    if not file.exists():
        return []
    before, now = yaml.safe_load(file.read_text()), study.model_dump(mode="json")
    fixed = ("baseline", "metric", "better", "paired", "tune", "hold", "chance")
    return [key for key in fixed if before.get(key) != now[key]]
