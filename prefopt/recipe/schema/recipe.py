"""A whole recipe, and the objectives and seeds in it."""

import typing

from pydantic import BeforeValidator, ConfigDict, Field, model_validator

from prefopt.recipe.names import FileName, Named, WithFields, named_sections
from prefopt.recipe.schema.evaluate import Evaluate
from prefopt.recipe.schema.feedback import FeedbackOrName
from prefopt.recipe.schema.models import Policy, Reference
from prefopt.recipe.schema.sampling import Environment
from prefopt.recipe.schema.source import Source
from prefopt.recipe.schema.track import Track
from prefopt.recipe.schema.train import Train
from prefopt.recipe.section import Section


class Term(WithFields):
    """An objective and its hyperparameters; keys other than these are its fields."""

    name: Named = Field(
        description="of the catalogue (`prefopt objectives`), or `package.module:Class`, `file.py:Class`"
    )
    weight: float = Field(1.0, description="factor of its loss in the sum of terms")
    source: Source | None = Field(None, description="batches of its own; null: those of the run")


class Seeds(Section):
    """One seed for each use of randomness; null: `seed`."""

    data: int | None = Field(None, ge=0, description="split of the data")
    init: int | None = Field(None, ge=0, description="randomly initialised weights: adapters and heads")
    order: int | None = Field(None, ge=0, description="order of the batches")
    sampling: int | None = Field(None, ge=0, description="sampling during training")
    evaluation: int | None = Field(None, ge=0, description="sampling in evaluations, and resampling for intervals")


class Recipe(Section):
    """A run."""

    model_config = ConfigDict(coerce_numbers_to_str=True)  # `name: 2024`, `variables: {size: 135}`

    name: FileName = Field(
        "run",
        description="name of the run and its folder; default: the recipe's folder and file name",
    )
    variables: dict[str, str] = Field(
        default_factory=dict,
        description="values for ${name} elsewhere in the recipe; ${env:NAME} reads the environment",
    )
    seed: int = Field(0, ge=0, description="seed for everything that `seeds` does not set")
    seeds: Seeds = Field(Seeds(), description="one seed for each use of randomness")
    policy: Policy = Field(description="the model that is trained")
    reference: Reference = Field(Reference(), description="the model that the policy is compared with")
    source: Source = Field(description="source of the training batches")
    feedback: FeedbackOrName | None = Field(
        None, description="what scores the policy's own completions: {name: RewardModel, model: runs/reward}"
    )
    cost: FeedbackOrName | None = Field(
        None, description="a second feedback, of what is to be kept low, for constrained objectives"
    )
    objective: typing.Annotated[tuple[Term, ...], BeforeValidator(named_sections)] = Field(
        min_length=1, description="one objective, or a list of terms: {name: DPO, beta: 0.1}"
    )
    train: Train = Field(description="the training loop")
    evaluate: Evaluate = Field(Evaluate(), description="evaluation on held-out data")
    track: Track = Field(Track(), description="tracking of metrics")

    def seed_of(self, what: str) -> int:
        """The seed for one use of randomness, by its name in `Seeds`."""
        given = getattr(self.seeds, what)
        return self.seed if given is None else given

    @property
    def evaluated_in(self) -> Environment | None:
        """What samples are written in when the policy is evaluated: an environment of its own, or that of the rollouts."""
        if self.evaluate.environment is not None or self.source.rollouts is None:
            return self.evaluate.environment
        return self.source.rollouts.environment

    @model_validator(mode="after")
    def _weights_of_more_bits_than_fp16(self) -> "Recipe":
        if self.train.precision == "fp16" and self.policy.adapter is None and self.policy.dtype != "float32":
            raise ValueError(
                f"train.precision: fp16 computes in 16 bits on weights of 32, and policy.dtype is {self.policy.dtype}: make it "
                "float32, or train an adapter (policy.adapter), whose weights have 32 bits"
            )
        return self

    @model_validator(mode="after")
    def _something_to_choose_among(self) -> "Recipe":
        if self.train.keep_best is not None and self.evaluate.every is None:
            raise ValueError(
                "train.keep_best chooses among evaluations on validation rows, and there are none: set how many steps are between "
                "them, for example evaluate.every: 20"
            )
        return self
