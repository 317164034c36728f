"""The schema of a study file: the question, arms, seeds, and everything else that is decided before the first run."""

import typing
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator

from prefopt.recipe import FolderName, Names, Recipe, Section, Seeds, Wandb, checked, folder_name, read
from prefopt.recipe.renamed import with_new_name, with_new_names
from prefopt.study.cluster_settings import Clusters
from prefopt.support.errors import nearest


def _tree(value: Any) -> Any:
    """A recipe as a tree; in Python it may be given as a `Recipe`."""
    return value.model_dump(mode="json") if isinstance(value, Section) else value


Base = typing.Annotated[str | dict[str, Any] | None, BeforeValidator(_tree)]


class Varied(BaseModel):
    """A recipe with changes to it: keys that are not listed here are fields of the recipe, dotted or nested."""

    model_config = ConfigDict(extra="allow", frozen=True)

    recipe: Base = Field(None, description="file of the recipe, or its keys; null is the study's")

    @property
    def fields(self) -> dict[str, Any]:
        """The changes to the recipe."""
        return dict(self.__pydantic_extra__ or {})


class Range(Section):
    """An interval of numbers to draw from."""

    low: float = Field(description="lower end")
    high: float = Field(description="upper end")
    log: bool = Field(False, description="uniform in the logarithm, as for learning rates")

    @model_validator(mode="after")
    def _ordered(self) -> "Range":
        if not self.low < self.high or (self.log and self.low <= 0):
            raise ValueError("a range is {low, high} with low below high; with log, low must be above 0")
        return self


Choices = Range | tuple[Any, ...]


class Arm(Varied):
    """One of the methods that are compared; other keys are fields of the recipe: `{objective: SimPO, train.lr: 1e-6}`."""

    grid: dict[str, tuple[Any, ...]] = Field(
        default_factory=dict, description="field → values: the arm becomes one arm for each combination"
    )
    tune: dict[str, Choices] = Field(
        default_factory=dict, description="fields to tune in this arm alone: `objective.tau: [0.1, 0.5]`"
    )


class Stage(Varied):
    """A run or a labelling that comes before the arms; arms and later stages refer to its folder as `${stages.NAME}`."""

    label: Base = Field(
        None,
        description="file of a labelling's recipe (docs/label.md), or its keys; the stage then labels and does not train",
    )

    per: Literal["study", "seed"] = Field("study", description="run once for all seeds, or once for each seed")

    @model_validator(mode="after")
    def _of_one_kind(self) -> "Stage":
        if self.label is not None and self.recipe is not None:
            raise ValueError("a stage either trains (`recipe`) or labels (`label`): leave one of them out")
        return self


class Tune(Section):
    """Hyperparameter search before the comparison: as many trials for every arm, on validation rows and seeds of its own."""

    fields: dict[str, Choices] = Field(
        default_factory=dict,
        description="field → {low, high, log} or a list of values; arms may add fields of their own",
    )
    trials: int = Field(gt=0, description="number of settings that each arm tries")
    search: Literal["random", "grid"] = Field(
        "random", description="random draws, or the full grid, which must have `trials` points"
    )
    seeds: tuple[int, ...] = Field(
        (1000,), min_length=1, description="seeds of the trials; none may be a seed of the study"
    )
    metric: str | None = Field(None, description="metric that selects the best trial; null is the study's")
    select: Literal["max", "min"] | None = Field(
        None, description="whether the best trial has the largest or the smallest; null follows `better`"
    )


NO_BUDGETS = {
    "tokens": "the policy decides how long its completions are, so their number is known only after sampling",
    "flops": "they follow from the number of tokens, which is known only after sampling",
    "seconds": "they depend on what else the machine does, so a run could not be repeated",
}


class Budget(Section):
    """What every arm that trains may use; the number of its steps (`train.steps`) follows from it."""

    labels: int | None = Field(None, gt=0, description="labels to learn from, counted as in docs/studies.md")
    tokens: int | None = Field(None, description="cannot be fixed in advance: reported for each arm")
    flops: float | None = Field(None, description="cannot be fixed in advance: reported for each arm")
    seconds: float | None = Field(None, description="cannot be fixed in advance: reported for each arm")

    @model_validator(mode="after")
    def _feasible(self) -> "Budget":
        for name, why in NO_BUDGETS.items():
            if getattr(self, name) is not None:
                raise ValueError(
                    f"{name} cannot be a budget: {why}. They are reported for each arm; labels can be a budget"
                )
        if self.labels is None:
            raise ValueError("a budget needs a number, as in `budget: {labels: 4096}`")
        return self


def _arms(value: Any) -> Any:
    """Arms by name; a list of recipes names each after its file."""
    if not isinstance(value, list | tuple):
        return value
    named = {
        Path(item).stem if isinstance(item, str) else item.name: {"recipe": item} for item in map(_listed_arm, value)
    }
    if len(named) < len(value):
        raise ValueError("two recipes of the list have the same name; write arms as `name: {recipe: file.yaml}`")
    return named


def _listed_arm(item: Any) -> Any:
    if not isinstance(item, str | Recipe):
        raise ValueError("a list of arms must hold recipe files; write other arms as `name: {…}`")
    return item


def _seeds(value: Any) -> Any:
    return tuple(range(value)) if isinstance(value, int) and not isinstance(value, bool) else value


RANDOMNESS = tuple(Seeds.model_fields)
"""The sources of randomness of a run; each has a seed of its own."""


class Study(Section):
    """Arms × seeds, and how they are compared; decided before the first run."""

    model_config = ConfigDict(coerce_numbers_to_str=True)

    name: FolderName = Field(
        "study",
        description="name of the study's folder; default: from the file's folder and name",
    )
    question: str = Field("", description="the question that the study answers; heads its report")
    variables: dict[str, str] = Field(default_factory=dict, description="values that its recipes use as ${name}")
    recipe: Base = Field(None, description="file of the base recipe, or its keys; arms may bring their own")
    common: dict[str, Any] = Field(
        default_factory=dict,
        description="changes to the recipes of all runs, of stages too; labellings are not changed",
    )
    stages: dict[str, Stage] = Field(
        default_factory=dict, description="runs and labellings before the arms, in this order"
    )
    arms: typing.Annotated[dict[str, Arm], BeforeValidator(_arms)] = Field(
        default_factory=dict,
        description="the methods to compare: name → changes to the recipe, or a list of recipe files",
    )
    grid: dict[str, tuple[Any, ...]] = Field(
        default_factory=dict, description="field → values, in every arm: one arm for each combination"
    )
    seeds: typing.Annotated[tuple[int, ...], BeforeValidator(_seeds)] = Field(
        (0, 1, 2), min_length=1, description="each arm is run once with each; a number n means 0 … n − 1"
    )
    randomness: Names = Field(
        RANDOMNESS,
        description=f"sources of randomness that the seed changes, of {', '.join(RANDOMNESS)}; others are fixed",
    )
    baseline: str | None = Field(None, description="the arm that the others are compared with; null is the first")
    against: Literal["baseline", "best", "all"] = Field(
        "baseline",
        description="what arms are compared with: the baseline; the arm with the best mean; or each with each. The last two "
        "correct over all pairs",
    )
    metric: str | None = Field(
        None,
        description="the primary metric, a held-out one of docs/metrics.md; null is the first of gold, win_rate, the recipes' own "
        "metrics and accuracy that all arms measure",
    )
    better: Literal["higher", "lower"] = Field(
        "higher", description="whether higher or lower values of the metric are better"
    )
    measure: Names = Field((), description="further metrics to report, as exploratory; empty means all")
    paired: bool = Field(True, description="compare seed by seed: arms of one seed share data, order and noise")
    varies: Names = Field(
        ("objective",),
        description="sections or fields that arms change on purpose; other differences are reported as confounds",
    )
    tune: Tune | None = Field(None, description="hyperparameter search for each arm, before the comparison")
    budget: Budget | None = Field(None, description="a budget that is the same for all arms")
    wandb: Wandb | None = Field(
        None, description="log all runs and the comparison to W&B, as one group; {} takes the defaults"
    )
    executor: Clusters = Field(
        default_factory=Clusters,
        description="what jobs ask for on a cluster: `{slurm: {partition: gpu}}` (docs/scale.md)",
    )
    folder: str = Field("runs", description="where the study's folder is put")

    @model_validator(mode="before")
    @classmethod
    def _renamed(cls, tree: Any) -> Any:
        return with_new_names(tree, "study")

    @field_validator("seeds")
    @classmethod
    def _distinct(cls, seeds: tuple[int, ...]) -> tuple[int, ...]:
        if len(set(seeds)) < len(seeds) or min(seeds) < 0:
            raise ValueError(f"seeds must be distinct and not negative, got {list(seeds)}")
        return seeds

    @field_validator("randomness")
    @classmethod
    def _known_sources(cls, randomness: tuple[str, ...]) -> tuple[str, ...]:
        if unknown := [name for name in randomness if name not in RANDOMNESS]:
            raise ValueError(f"unknown source of randomness {unknown[0]!r}.{nearest(unknown[0], RANDOMNESS)}")
        return randomness

    @field_validator("varies")
    @classmethod
    def _present_names(cls, varies: tuple[str, ...]) -> tuple[str, ...]:
        present = tuple(with_new_name(key, "varies") for key in varies)
        for key in present:
            if key.partition(".")[0] not in Recipe.model_fields:
                raise ValueError(f"{key!r} is no section of a recipe.{nearest(key, Recipe.model_fields)}")
        return present

    @model_validator(mode="after")
    def _consistent(self) -> "Study":
        names = list(self.all_arms())
        for name in (*names, *self.stages):
            folder_name(name)
        if self.baseline is not None and self.baseline not in names:
            raise ValueError(
                f"baseline {self.baseline!r} is not an arm.{nearest(self.baseline, names)} Arms: {', '.join(names)}"
            )
        for name, arm in self.arms.items():
            if self.recipe is None and arm.recipe is None:
                raise ValueError(f"arm {name} has no recipe; give one in `recipe`, the arm's or the study's")
            if arm.tune and self.tune is None:
                raise ValueError(f"arm {name} has fields to tune; say how, in `tune: {{trials: …}}`")
        if self.tune is not None and (both := set(self.tune.seeds) & set(self.seeds)):
            raise ValueError(
                f"tune.seeds has {min(both)}, which is a seed of the study: settings must be tuned on other "
                "seeds than those that test them, as in `tune: {seeds: [1000]}`"
            )
        return self

    def all_arms(self) -> dict[str, Arm]:
        """Every arm by its name, grids expanded.

        Raises:
            ValueError: there is no arm, or two have the same name.
        """
        arms: dict[str, Arm] = {}
        for name, arm in (self.arms or {"": Arm()}).items():
            grid = dict(self.grid) | dict(arm.grid)
            if empty := [key for key, values in grid.items() if not values]:
                raise ValueError(f"grid.{empty[0]} has no values, so there would be no arm: give some, or leave it out")
            for point, values in _points(grid):
                full = "-".join(part for part in (name, point) if part)
                if not full and self.arms:
                    raise ValueError("an arm has no name, and its folder needs one: write letters, digits, - and _")
                if not full:
                    raise ValueError("there is nothing to compare: name some `arms`, or a `grid`")
                if full in arms:
                    raise ValueError(f"two arms are called {full}")
                arms[full] = Arm(recipe=arm.recipe, tune=arm.tune, **(arm.fields | values))
        return arms

    @property
    def primary_metric(self) -> str:
        """The metric that decides, of a study that is planned."""
        assert self.metric is not None, "study.question.plan_study decides it"
        return self.metric

    @property
    def reference_arm(self) -> str:
        """The name of the baseline."""
        return self.baseline or next(iter(self.all_arms()))


def load_study(path: str | Path, overrides: Sequence[str] = ()) -> Study:
    """Read a study, what it inherits, and the overrides, as `load_recipe` does.

    Raises:
        PrefoptError: no such file; not YAML; an unknown key (with the nearest known one); a value that is not valid.
    """
    # Variables are not replaced yet: an arm's recipe may have its own, and ${stages.…} depends on the study's folder.
    return checked(Study, read(path, overrides), str(path), overrides)


def _points(grid: Mapping[str, Sequence[Any]]) -> list[tuple[str, dict[str, Any]]]:
    """Every combination of a grid's values, each with a name such as `beta=0.1-lr=0.001`."""
    short = [key.rpartition(".")[2] for key in grid]
    names = [key if short.count(last) > 1 else last for key, last in zip(grid, short, strict=True)]
    return [
        ("-".join(f"{n}={_short(v)}" for n, v in zip(names, values, strict=True)), dict(zip(grid, values, strict=True)))
        for values in product(*grid.values())
    ]


def _short(value: Any) -> str:
    """A value as it stands in the name of an arm."""
    if isinstance(value, Mapping):
        return _short(value.get("name", next(iter(value.values()), "")))
    text = f"{value:g}" if isinstance(value, float) else str(value)
    return Path(text).stem if "/" in text else text


def study_folder(study: Study, folder: str | Path | None) -> Path:
    """The study's folder, absolute.

    Args:
        study: whose `folder` and name are taken where none is given.
        folder: given.
    """
    return (Path(study.folder) / study.name if folder is None else Path(folder)).expanduser().absolute()
