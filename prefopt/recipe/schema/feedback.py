"""Sections of a recipe about what scores completions."""

import typing
from typing import Literal

from pydantic import BeforeValidator, Field, model_validator

from prefopt.recipe.names import Named, Names, WithFields, named_section, named_sections

FEEDBACKS = ("Rule", "RewardModel", "Judge", "Ensemble", "Panel", "WeightedSum", "EnvironmentReward")
"""The feedbacks that come with prefopt, by name."""

TRANSFORMS = ("LengthPenalty", "RepetitionPenalty", "Clip", "Normalise", "ReferenceNormalise", "MissingEOS")
"""The transforms of scores that come with prefopt, by name."""


class Transform(WithFields):
    """What is done to scores before anything learns from them; keys other than the name are its fields."""

    name: Named = Field(
        description="LengthPenalty, RepetitionPenalty, Clip, Normalise, ReferenceNormalise, MissingEOS, or your own by path"
    )


class Feedback(WithFields):
    """What scores completions; keys other than these are its fields."""

    name: Named = Field(
        description="RewardModel, Judge, Ensemble, Panel, WeightedSum, or your own function or class: `package.module:name`, "
        "`file.py:name`"
    )
    timeout: float | None = Field(None, gt=0, description="seconds that a call may take; null is any time")
    transforms: typing.Annotated[tuple[Transform, ...], BeforeValidator(named_sections)] = Field(
        (), description="what is done to its scores, in this order: [{name: Clip, low: -5, high: 5}, …]"
    )
    members: typing.Annotated[tuple["Feedback", ...], BeforeValidator(named_sections)] = Field(
        (),
        description="of an Ensemble, Panel or WeightedSum, or of your own class: feedbacks, each a name or a section like this one",
    )


FeedbackOrName = typing.Annotated[Feedback, BeforeValidator(named_section)]
"""A feedback, which may be given by its name alone."""


class Metric(Feedback):
    """A measure of samples; keys other than these are its fields."""

    over: Literal["completions", "corpus"] = Field(
        "completions",
        description="completions: it returns numbers for each completion; corpus: one number of all samples together",
    )
    values: Names = Field(
        (),
        description="names of the values that it returns for each completion, where these are several: measured as METRIC_VALUE",
    )

    @model_validator(mode="after")
    def _fitting(self) -> "Metric":
        if self.over == "corpus" and (self.transforms or self.members or self.values):
            raise ValueError("over is corpus: one number of all samples, so leave out transforms, members and values")
        if self.values and self.transforms:
            raise ValueError(
                "transforms are of one number for each completion, and values names several: leave out one"
            )
        return self


MetricOrName = typing.Annotated[Metric, BeforeValidator(named_section)]
"""A metric, which may be given by its name alone."""
