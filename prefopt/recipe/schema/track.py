"""Sections of a recipe about the tracking of metrics."""

from typing import Literal

from pydantic import Field

from prefopt.recipe.names import Names
from prefopt.recipe.section import Section


class Wandb(Section):
    """Weights & Biases; offline unless a login is present."""

    project: str = Field("prefopt", description="project in W&B")
    entity: str | None = Field(None, description="user or team; null: the login's own")
    name: str | None = Field(None, description="name of the run in W&B; null: the run folder's")
    group: str | None = Field(None, description="group of runs in W&B")
    tags: Names = Field((), description="tags of the run in W&B")
    mode: Literal["auto", "online", "offline"] = Field(
        "auto", description="auto: online if a login is present, otherwise offline"
    )


class Track(Section):
    """Tracking of metrics; metrics.jsonl is always written."""

    every: int = Field(1, gt=0, description="steps between lines of metrics")
    wandb: Wandb | None = Field(None, description="also log to W&B; {} uses the defaults; null: no W&B")
    folder: str = Field("runs", description="folder in which run folders are created")
