"""What a study is: a question, arms, seeds, and all that is decided before the first run."""

import typing
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator

from prefopt.recipe import Names, Recipe, Section, Seeds, Wandb, checked, read
from prefopt.support.errors import nearest


def _tree(value: Any) -> Any:
    """A recipe may be given whole, as Python has it."""
    return value.model_dump(mode="json") if isinstance(value, Section) else value


Base = typing.Annotated[str | dict[str, Any] | None, BeforeValidator(_tree)]


class Varied(BaseModel):
    """A recipe with changes; keys other than these are fields of the recipe, dotted or nested."""

    model_config = ConfigDict(extra="allow", frozen=True)

    recipe: Base = Field(None, description="file of the recipe, or its keys; null is the study's")

    @property
    def fields(self) -> dict[str, Any]:
        """The changes to the recipe."""
        return dict(self.__pydantic_extra__ or {})


class Range(Section):
    """Numbers to draw from."""

    low: float = Field(description="the least")
    high: float = Field(description="the greatest")
    log: bool = Field(False, description="even in the logarithm, for learning rates and the like")

    @model_validator(mode="after")
    def _ordered(self) -> "Range":
        if not self.low < self.high or (self.log and self.low <= 0):
            raise ValueError("a range is {low, high} with low below high, and above 0 where it is log")
        return self


Choices = Range | tuple[Any, ...]


class Arm(Varied):
    """One thing that is compared; keys other than these are fields of the recipe: `{objective: SimPO, train.lr: 1e-6}`."""

    grid: dict[str, tuple[Any, ...]] = Field(
        default_factory=dict, description="fields with values to try: an arm for each combination"
    )
    tune: dict[str, Choices] = Field(
        default_factory=dict, description="more fields to tune, of this arm alone: `objective.tau: [0.1, 0.5]`"
    )


class Stage(Varied):
    """Something made first, by a recipe of a run or of a labelling; `${stages.NAME}` is its folder, in what comes after it."""

    label: Base = Field(
        None,
        description="file of a labelling's recipe (docs/label.md), or its keys: the stage labels and trains nothing",
    )

    per: Literal["study", "seed"] = Field("study", description="made once for all seeds, or once for each")

    @model_validator(mode="after")
    def _of_one_kind(self) -> "Stage":
        if self.label is not None and self.recipe is not None:
            raise ValueError("a stage trains by its `recipe` or labels by its `label`: leave one of them out")
        return self


class Tune(Section):
    """Settings found for every arm by the same number of trials, on validation rows and other seeds than the study's."""

    fields: dict[str, Choices] = Field(
        default_factory=dict, description="field → {low, high, log} or a list of values; arms may add their own"
    )
    trials: int = Field(gt=0, description="settings that each arm tries")
    search: Literal["random", "grid"] = Field("random", description="how they are chosen; a grid has as many as trials")
    seeds: tuple[int, ...] = Field((1000,), min_length=1, description="of the trials; none of the study's")
    metric: str | None = Field(None, description="what chooses; null is the study's")
    select: Literal["max", "min"] | None = Field(None, description="the best is the largest, or the smallest")


UNHELD = {
    "tokens": "completions are as long as the policy makes them, so their number is known only when they are written",
    "flops": "they follow from the tokens, which are known only when they are written",
    "seconds": "they depend on what else the machine does, so no run could be repeated",
}


class Hold(Section):
    """A budget that every arm that trains is given alike; its `train.steps` follow."""

    labels: int | None = Field(None, gt=0, description="judgements to learn from, as docs/studies.md counts them")
    tokens: int | None = Field(None, description="cannot be held: reported beside each arm")
    flops: float | None = Field(None, description="cannot be held: reported beside each arm")
    seconds: float | None = Field(None, description="cannot be held: reported beside each arm")

    @model_validator(mode="after")
    def _feasible(self) -> "Hold":
        for name, why in UNHELD.items():
            if getattr(self, name) is not None:
                raise ValueError(
                    f"{name} cannot be held equal: {why}. They are reported beside each arm; labels can be held"
                )
        if self.labels is None:
            raise ValueError("say how many: hold: {labels: 4096}")
        return self


def _arms(value: Any) -> Any:
    """Arms may be a list of recipes, each named after its file."""
    if not isinstance(value, list | tuple):
        return value
    named = {Path(item).stem if isinstance(item, str) else item.name: {"recipe": item} for item in map(_given, value)}
    if len(named) < len(value):
        raise ValueError("two recipes of the list have one name; write arms as `name: {recipe: file.yaml}`")
    return named


def _given(item: Any) -> Any:
    if not isinstance(item, str | Recipe):
        raise ValueError("a list of arms is a list of recipe files; write others as `name: {…}`")
    return item


def _seeds(value: Any) -> Any:
    return tuple(range(value)) if isinstance(value, int) and not isinstance(value, bool) else value


CHANCES = tuple(Seeds.model_fields)


class Study(Section):
    """Arms × seeds, and what is asked of them; fixed before the first run."""

    model_config = ConfigDict(coerce_numbers_to_str=True)

    name: str = Field(
        "study", pattern=r"^[^/\\]+$", description="names the folder; a file's default is its folder and name"
    )
    question: str = Field("", description="what the study is to answer; stands above its report")
    variables: dict[str, str] = Field(default_factory=dict, description="used in its recipes as ${name}")
    recipe: Base = Field(None, description="file of the base recipe, or its keys; arms may bring their own")
    common: dict[str, Any] = Field(
        default_factory=dict, description="changes to the recipes of all runs, stages' too; not to labellings"
    )
    stages: dict[str, Stage] = Field(default_factory=dict, description="what is made first, in this order")
    arms: typing.Annotated[dict[str, Arm], BeforeValidator(_arms)] = Field(
        default_factory=dict, description="what is compared: name → changes to the recipe, or a list of recipe files"
    )
    grid: dict[str, tuple[Any, ...]] = Field(
        default_factory=dict, description="fields with values to try, in every arm: an arm for each combination"
    )
    seeds: typing.Annotated[tuple[int, ...], BeforeValidator(_seeds)] = Field(
        (0, 1, 2), min_length=1, description="one run of each arm for each; a number n is 0 … n − 1"
    )
    chance: Names = Field(CHANCES, description=f"what differs from seed to seed: {', '.join(CHANCES)}")
    baseline: str | None = Field(None, description="the arm that others are compared with; null is the first")
    metric: str = Field("gold", description="the one that decides: a held-out metric of docs/metrics.md")
    better: Literal["higher", "lower"] = Field("higher", description="which end of the metric is the good one")
    measure: Names = Field((), description="further metrics to report, as exploratory; none is all")
    paired: bool = Field(True, description="compare seed by seed: arms of one seed share data, order and noise")
    varies: Names = Field(
        ("objective",),
        description="sections or fields that differ on purpose; other differences are reported as confounds",
    )
    tune: Tune | None = Field(None, description="settings to find for each arm first, by the same number of trials")
    hold: Hold | None = Field(None, description="a budget that all arms get alike")
    wandb: Wandb | None = Field(None, description="log all runs and the comparison to W&B, as one group; {} does")
    folder: str = Field("runs", description="where the study's folder is made")

    @field_validator("seeds")
    @classmethod
    def _distinct(cls, seeds: tuple[int, ...]) -> tuple[int, ...]:
        if len(set(seeds)) < len(seeds) or min(seeds) < 0:
            raise ValueError(f"seeds must be distinct and not negative, got {list(seeds)}")
        return seeds

    @field_validator("chance")
    @classmethod
    def _known_chances(cls, chance: tuple[str, ...]) -> tuple[str, ...]:
        if unknown := [name for name in chance if name not in CHANCES]:
            raise ValueError(f"unknown source of chance {unknown[0]!r}.{nearest(unknown[0], CHANCES)}")
        return chance

    @model_validator(mode="after")
    def _consistent(self) -> "Study":
        names = list(self.all_arms())
        for name in (*names, *self.stages):
            if "/" in name or "\\" in name or name.startswith("."):
                raise ValueError(f"{name!r} cannot name a folder: leave out slashes and a leading dot")
        if self.baseline is not None and self.baseline not in names:
            raise ValueError(
                f"baseline {self.baseline!r} is no arm.{nearest(self.baseline, names)} Arms: {', '.join(names)}"
            )
        for name, arm in self.arms.items():
            if self.recipe is None and arm.recipe is None:
                raise ValueError(f"arm {name} has no recipe; give one in `recipe`, the arm's or the study's")
            if arm.tune and self.tune is None:
                raise ValueError(f"arm {name} has fields to tune; say how, in `tune: {{trials: …}}`")
        if self.tune is not None and (both := set(self.tune.seeds) & set(self.seeds)):
            raise ValueError(
                f"tune.seeds has {min(both)}, which is a seed of the study: what is tuned on cannot be the test"
            )
        return self

    def all_arms(self) -> dict[str, Arm]:
        """Every arm by its name, grids written out.

        Raises:
            ValueError: there is none, or two have one name.
        """
        found: dict[str, Arm] = {}
        for name, arm in (self.arms or {"": Arm()}).items():
            for label, values in _points(dict(self.grid) | dict(arm.grid)):
                full = "-".join(part for part in (name, label) if part)
                if not full:
                    raise ValueError("there is nothing to compare: name some `arms`, or a `grid`")
                if full in found:
                    raise ValueError(f"two arms are called {full}")
                found[full] = Arm(recipe=arm.recipe, tune=arm.tune, **(arm.fields | values))
        return found

    @property
    def reference_arm(self) -> str:
        """The baseline, by name."""
        return self.baseline or next(iter(self.all_arms()))


def load_study(path: str | Path, overrides: Sequence[str] = ()) -> Study:
    """Read a study, what it inherits, and the overrides, as `load_recipe` does.

    Raises:
        PrefoptError: no such file, no YAML, an unknown key (with the nearest known one), a value that cannot be.
    """
    # Variables stay, for those of an arm may be its recipe's own, and ${stages.…} are known only in a folder.
    return checked(Study, read(path, overrides), str(path))


def _points(grid: Mapping[str, Sequence[Any]]) -> list[tuple[str, dict[str, Any]]]:
    """Every combination of a grid's values, each with a name such as `beta=0.1-lr=0.001`."""
    short = [key.rpartition(".")[2] for key in grid]
    names = [key if short.count(last) > 1 else last for key, last in zip(grid, short, strict=True)]
    return [
        ("-".join(f"{n}={_said(v)}" for n, v in zip(names, values, strict=True)), dict(zip(grid, values, strict=True)))
        for values in product(*grid.values())
    ]


def _said(value: Any) -> str:
    if isinstance(value, Mapping):
        return _said(value.get("name", next(iter(value.values()), "")))
    text = f"{value:g}" if isinstance(value, float) else str(value)
    return Path(text).stem if "/" in text else text
