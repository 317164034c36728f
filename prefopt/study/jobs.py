"""From a study to its runs: which recipe, which seed, which folder."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from prefopt import recipe
from prefopt.accounting import labels_per_prompt
from prefopt.errors import PrefoptError
from prefopt.recipe import Recipe, Wandb
from prefopt.study.spec import CHANCES, Study, Varied


@dataclass(frozen=True)
class Job:
    """One run of a study.

    Attributes:
        name: of the arm, stage or trial.
        seed: of the run.
        folder: the run folder.
        recipe: resolved.
        after: run folders that it reads from.
    """

    name: str
    seed: int
    folder: Path
    recipe: Recipe
    after: tuple[Path, ...] = ()

    @property
    def done(self) -> bool:
        """Whether the run came to its end."""
        return (self.folder / "summary.json").exists()

    def __str__(self) -> str:
        return f"{self.name} seed {self.seed}"


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

    def stages(self) -> list[list[Job]]:
        """What is made first: a list for each stage, for a later one may need an earlier one."""
        return [
            [
                self._job(stage, f"stage {name}", seed, self._stage(name, seed), before=name)
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

    def _job(
        self,
        varied: Varied,
        name: str,
        seed: int,
        folder: Path,
        settings: Mapping[str, Any] | None = None,
        before: str | None = None,
    ) -> Job:
        """A run of a varied recipe; of the stages, those before the one called `before` can be named in it."""
        names = list(self.study.stages)
        known = names if before is None else names[: names.index(before)]
        stages = {stage: self._stage(stage, seed) for stage in known}
        resolved = self._recipe(varied, name, seed, settings or {}, stages, is_stage=before is not None)
        read = "\n".join(_texts(resolved.model_dump(mode="json")))
        after = tuple(path for path in stages.values() if str(path) in read)
        return Job(name, seed, folder, resolved, after)

    def _recipe(
        self,
        varied: Varied,
        name: str,
        seed: int,
        settings: Mapping[str, Any],
        stages: Mapping[str, Path],
        is_stage: bool,
    ) -> Recipe:
        study = self.study
        where = name if is_stage else f"arm {name}"
        tree = recipe.refined(self._base(varied), study.common, f"common, in {where}")
        tree = recipe.refined(tree, {**varied.fields, **settings}, where)
        tree["variables"] = {**(tree.get("variables") or {}), **study.variables}
        tree |= {"name": name.replace(" ", "-"), "seed": seed}
        fixed = {chance: study.seeds[0] for chance in CHANCES if chance not in study.chance}
        tree["seeds"] = fixed | (tree.get("seeds") or {})
        variables = {f"stages.{stage}": str(path) for stage, path in stages.items()}
        resolved = recipe.checked(Recipe, recipe.interpolated(tree, variables), where)
        return self._tracked(_one_thread(self._held(resolved, where) if not is_stage else resolved))

    def _base(self, varied: Varied) -> dict[str, Any]:
        """The recipe that is varied, read once."""
        given = varied.recipe if varied.recipe is not None else self.study.recipe
        if given is None:
            raise PrefoptError("there is no recipe to vary: give one in `recipe`, the stage's or the study's")
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
