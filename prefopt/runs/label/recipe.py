"""The recipe of a labelling: which completions, whose opinion of them. It shares its sections with the recipe of a run."""

from collections.abc import Sequence
from pathlib import Path

from pydantic import ConfigDict, Field, model_validator

from prefopt import recipe
from prefopt.recipe import Data, FeedbackOrName, FileName, Policy, Samples, Section
from prefopt.support.errors import PrefoptError


class LabelRecipe(Section):
    """A labelling."""

    model_config = ConfigDict(coerce_numbers_to_str=True)

    name: FileName = Field("label", description="a file's default is its folder and name")
    variables: dict[str, str] = Field(
        default_factory=dict, description="used elsewhere as ${name}; ${env:NAME} reads the environment"
    )
    seed: int = Field(0, ge=0, description="of the completions that are sampled")
    source: Data = Field(description="where prompts come from, and completions, where no policy writes them")
    prompts: int | None = Field(
        None,
        gt=0,
        description="label the first so many: distinct prompts that a policy completes, else rows; null is all",
    )
    policy: Policy | None = Field(
        None,
        description="what writes completions; null takes the data's own, whose present scores are then kept as `given`",
    )
    samples: Samples | None = Field(None, description="how the policy writes; null is these defaults")
    max_prompt_tokens: int = Field(
        512, gt=0, description="longer prompts lose their beginning when the policy reads them"
    )
    feedback: FeedbackOrName = Field(description="whose opinion it is: {name: RewardModel, model: runs/reward}")
    sharpness: float | None = Field(
        None,
        gt=0,
        description="of a feedback that only scores, soft labels are σ(sharpness · (score − other score)); null is none",
    )
    batch_size: int = Field(16, gt=0, description="prompts that are labelled, and written to disk, at a time")
    precision: recipe.Precision = Field(
        "auto", description="arithmetic of models; auto is bf16 on devices that have it"
    )
    threads: recipe.ThreadsOrMost | None = Field(None, description=recipe.THREADS)

    @model_validator(mode="after")
    def _who_writes(self) -> "LabelRecipe":
        if self.policy is None and self.samples is not None:
            raise ValueError("samples says how a policy writes; name it in `policy`, or leave samples out")
        if self.policy is not None and self.policy.adapter is not None:
            raise ValueError("policy.adapter trains an adapter, and nothing is trained here: leave it out")
        return self


def load_label_recipe(path: str | Path, overrides: Sequence[str] = ()) -> LabelRecipe:
    """Read the recipe of a labelling; `prefopt.recipe.load` says how.

    Raises:
        PrefoptError: no such file, no YAML, an unknown key (with the nearest known one), a value that cannot be.
    """
    return recipe.load(LabelRecipe, path, overrides)


def in_the_way(begun: LabelRecipe, now: LabelRecipe) -> list[str]:
    """The keys for which a labelling that has begun cannot go on by this recipe."""
    return list(recipe.material_differences(begun, now, recipe.OF_LABELLINGS))


def refuse_folder(folder: Path, settings: LabelRecipe) -> None:
    """A folder is new, or one that the same recipe has begun.

    Raises:
        PrefoptError: it is another.
    """
    if folder.is_file() or folder.suffix == ".jsonl":
        raise PrefoptError(f"{folder}: name a folder; the rows will be its data.jsonl")
    if not folder.is_dir() or all(file.name.startswith(".") for file in folder.iterdir()):
        return
    if not (folder / "recipe.yaml").is_file():
        raise PrefoptError(f"{folder} is there already, and is no labelling: name another, for nothing is overwritten")
    if different := in_the_way(load_label_recipe(folder / "recipe.yaml"), settings):
        raise PrefoptError(
            f"{folder} was begun with another recipe; it differs in {', '.join(different)}: name another folder"
        )
