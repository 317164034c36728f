"""From a study to its jobs: the recipe, seed and folder of each."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import yaml

from prefopt import recipe
from prefopt.recipe import Recipe, Section, Wandb
from prefopt.recipe.renamed import with_new_names
from prefopt.runs.accounting import labels_per_prompt
from prefopt.runs.label.recipe import LabelRecipe
from prefopt.study.jobs import Job, LabelJob, RunJob
from prefopt.study.spec import RANDOMNESS, Study, Varied
from prefopt.support.errors import PrefoptError
from prefopt.training.environment import WANDB_LEADS, given

Kind = TypeVar("Kind", bound=Section)


@dataclass(frozen=True)
class StudyPlan:
    """The jobs of a study in a folder.

    Attributes:
        study: what is to be run.
        folder: the study's; absolute, because recipes of arms name the folders of stages.
    """

    study: Study
    folder: Path
    _trees: dict[str, dict[str, Any]] = field(default_factory=dict, repr=False, compare=False)

    def arms(self, chosen: Mapping[str, Mapping[str, Any]] | None = None) -> list[RunJob]:
        """A run of every arm with every seed: all arms with the first seed, then with the second.

        Args:
            chosen: settings of tuned arms.

        Raises:
            PrefoptError: the recipe of an arm is not valid; the message names the arm.
        """
        every = self.study.all_arms()
        return [
            self._run(arm, name, seed, self.folder / "arms" / name / f"seed-{seed}", (chosen or {}).get(name, {}))
            for seed in self.study.seeds
            for name, arm in every.items()
        ]

    def stages(self) -> list[list[Job]]:
        """The jobs of each stage; a stage may read from those before it, so they run in this order."""
        return [
            [
                self._stage_job(name, seed)
                for seed in ([self.study.seeds[0]] if stage.per == "study" else self._all_seeds())
            ]
            for name, stage in self.study.stages.items()
        ]

    def trial(self, arm: str, number: int, seed: int, settings: Mapping[str, Any]) -> RunJob:
        """One trial of an arm's settings: evaluated on validation rows alone, and logged nowhere."""
        folder = self.folder / "tuning" / arm / f"trial-{number}" / f"seed-{seed}"
        settings = {**settings, "evaluate.part": "validation"}
        job = self._run(self.study.all_arms()[arm], f"{arm} trial {number}", seed, folder, settings)
        # Here and not in the settings, because the study's own `wandb` comes after them.
        track = job.recipe.track.without_trackers()
        evaluate = job.recipe.evaluate.model_copy(update={"sets": {}})
        return replace(job, recipe=job.recipe.model_copy(update={"track": track, "evaluate": evaluate}))

    def _all_seeds(self) -> tuple[int, ...]:
        return self.study.seeds + (self.study.tune.seeds if self.study.tune else ())

    def _stage_folder(self, name: str, seed: int) -> Path:
        folder = self.folder / "stages" / name
        return folder if self.study.stages[name].per == "study" else folder / f"seed-{seed}"

    def _run(self, arm: Varied, name: str, seed: int, folder: Path, settings: Mapping[str, Any]) -> RunJob:
        """A run of an arm."""
        where = f"arm {name}"
        tree = self._tree(arm, name, seed, where, settings)
        resolved, after = self._resolved(Recipe, tree, where, self._stages(seed))
        return RunJob(name, seed, folder, self._in_wandb_group(_one_thread(self._with_budget(resolved, where))), after)

    def _stage_job(self, name: str, seed: int) -> Job:
        """The run or labelling of a stage; its recipe can name the stages before it."""
        stage, folder, called = self.study.stages[name], self._stage_folder(name, seed), f"stage {name}"
        earlier = self._stages(seed, before=name)
        if stage.label is None:
            resolved, after = self._resolved(Recipe, self._tree(stage, called, seed, called, {}), called, earlier)
            return RunJob(called, seed, folder, self._in_wandb_group(_one_thread(resolved)), after)
        tree = recipe.refined(self._read(stage.label), stage.fields, called)
        sampling_seed = seed if "sampling" in self.study.randomness else self.study.seeds[0]
        tree |= {"name": called.replace(" ", "-"), "seed": sampling_seed}
        labelling, after = self._resolved(LabelRecipe, tree, called, earlier)
        one_thread = labelling.model_copy(update={"threads": labelling.threads or 1})
        return LabelJob(called, seed, folder, one_thread, after)

    def _stages(self, seed: int, before: str | None = None) -> dict[str, Path]:
        """The folders of all stages, or of those before one, that a job with this seed reads from."""
        names = list(self.study.stages)
        return {
            name: self._stage_folder(name, seed) for name in names[: None if before is None else names.index(before)]
        }

    def _tree(self, varied: Varied, name: str, seed: int, where: str, settings: Mapping[str, Any]) -> dict[str, Any]:
        """The recipe of a run as a tree, with all changes to it; variables are not replaced yet."""
        study = self.study
        given = varied.recipe if varied.recipe is not None else study.recipe
        if given is None:
            raise PrefoptError("there is no recipe to vary: give one in `recipe`, the stage's or the study's")
        tree = recipe.refined(self._read(given), study.common, f"common, in {where}")
        tree = recipe.refined(tree, {**varied.fields, **settings}, where)
        fixed = {source: study.seeds[0] for source in RANDOMNESS if source not in study.randomness}
        return tree | {"name": name.replace(" ", "-"), "seed": seed, "seeds": fixed | (tree.get("seeds") or {})}

    def _resolved(
        self, kind: type[Kind], tree: Mapping[str, Any], where: str, stages: Mapping[str, Path]
    ) -> tuple[Kind, tuple[Path, ...]]:
        """The tree as a recipe of this kind, and the folders of the stages that it names."""
        whole = {**tree, "variables": {**(tree.get("variables") or {}), **self.study.variables}}
        texts = "\n".join(_texts(whole))
        after = tuple(folder for stage, folder in stages.items() if f"${{stages.{stage}}}" in texts)
        variables = {f"stages.{stage}": str(folder) for stage, folder in stages.items()}
        return recipe.checked(kind, recipe.interpolated(whole, variables), where), after

    def _read(self, given: str | Mapping[str, Any]) -> dict[str, Any]:
        """A recipe, given as a tree or as the name of a file; each file is read once."""
        if not isinstance(given, str):
            return recipe.refined({}, given, "recipe")
        if given not in self._trees:
            file = str(recipe.interpolated({"file": given, "variables": self.study.variables})["file"])
            self._trees[given] = recipe.read(file)
        return self._trees[given]

    def _with_budget(self, settings: Recipe, where: str) -> Recipe:
        """The recipe with as many steps as use up the study's budget."""
        if self.study.budget is None or settings.train.steps == 0:
            return settings
        assert self.study.budget.labels is not None
        per_batch = labels_per_prompt(settings) * settings.train.batch_size
        if not per_batch or self.study.budget.labels % per_batch:
            raise PrefoptError(
                f"{where}: a batch takes {per_batch} labels, and budget.labels = {self.study.budget.labels} is not a "
                + (
                    "multiple: nothing is labelled in it"
                    if not per_batch
                    else "multiple of that; change one of the two"
                )
            )
        steps = {"steps": self.study.budget.labels // per_batch, "epochs": None}
        return settings.model_copy(update={"train": settings.train.model_copy(update=steps)})

    def _in_wandb_group(self, settings: Recipe) -> Recipe:
        """The recipe with its run in the study's group at W&B, if it is logged there at all."""
        wandb = settings.track.wandb or self.study.wandb
        if wandb is None:
            return settings
        if leads := given(WANDB_LEADS):
            raise PrefoptError(
                f"{', '.join(leads)} in the environment: W&B's sweeps and launches give one id to all that they start, and the "
                "runs of a study would share it; unset it, leave `wandb` out, or start `prefopt run` in place of a study"
            )
        name = {"group": wandb.group or self.study.name, "name": f"{settings.name}-seed{settings.seed}"}
        track = settings.track.model_copy(update={"wandb": Wandb(**{**wandb.model_dump(), **name})})
        return settings.model_copy(update={"track": track})


def _one_thread(settings: Recipe) -> Recipe:
    """One CPU thread where the recipe leaves `train.threads` open, so that results do not depend on the number of processes."""
    if settings.train.threads is not None:
        return settings
    return settings.model_copy(update={"train": settings.train.model_copy(update={"threads": 1})})


def _texts(tree: Any) -> list[str]:
    if isinstance(tree, dict | list):
        return [text for item in (tree.values() if isinstance(tree, dict) else tree) for text in _texts(item)]
    return [tree] if isinstance(tree, str) else []


def changed_declarations(study: Study, folder: Path) -> Sequence[str]:
    """Keys of the study that are fixed once it has begun, and differ from study.yaml in the folder; empty for a new folder.

    Raises:
        PrefoptError: study.yaml is not what a study wrote.
    """
    file = folder / "study.yaml"
    if not file.exists():
        return []
    before, now = _written(file), study.model_dump(mode="json")
    fixed = ("baseline", "against", "metric", "better", "paired", "tune", "budget", "randomness")
    return [key for key in fixed if before.get(key, now[key]) != now[key]]


def _written(file: Path) -> Mapping[str, Any]:
    """What a study wrote in its folder."""
    try:
        tree = with_new_names(yaml.safe_load(file.read_text(encoding="utf-8")), where=None)
    except (yaml.YAMLError, UnicodeDecodeError):
        tree = None
    if not isinstance(tree, Mapping):
        raise PrefoptError(
            f"{file} is damaged, and says no more which study this folder holds: restore it (study-before.yaml may have "
            "it), or give the study a folder of its own (--out)"
        )
    return tree
