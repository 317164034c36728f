"""Sections of a recipe about what scores completions."""

import typing

from pydantic import BeforeValidator, Field

from prefopt.recipe.names import Named, WithFields, named_section, named_sections


class Transform(WithFields):
    """What is done to scores before anything learns from them; keys other than the name are its fields."""

    name: Named = Field(
        description="LengthPenalty, RepetitionPenalty, Clip, Normalise, ReferenceNormalise, MissingEOS, or your own by path"
    )


class Feedback(WithFields):
    """What scores completions; keys other than these are its fields."""

    name: Named = Field(
        description="RewardModel, Judge, Ensemble, Panel, or your own function or class: `package.module:name`, `file.py:name`"
    )
    timeout: float | None = Field(None, gt=0, description="seconds that a call may take; null is any time")
    transforms: typing.Annotated[tuple[Transform, ...], BeforeValidator(named_sections)] = Field(
        (), description="what is done to its scores, in this order: [{name: Clip, low: -5, high: 5}, …]"
    )
    members: typing.Annotated[tuple["Feedback", ...], BeforeValidator(named_sections)] = Field(
        (),
        description="of an Ensemble or Panel, or of your own class: feedbacks, each a name or a section like this one",
    )


FeedbackOrName = typing.Annotated[Feedback, BeforeValidator(named_section)]
"""A feedback, which may be given by its name alone."""
