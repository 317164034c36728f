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


class TensorBoard(Section):
    """TensorBoard; its event files are in the run folder, and `tensorboard --logdir runs` shows all runs."""


class MLflow(Section):
    """MLflow: each run is one of an experiment."""

    experiment: str = Field("prefopt", description="experiment in MLflow")
    uri: str | None = Field(
        None, description="tracking server or database; null: MLFLOW_TRACKING_URI, or else MLflow's own default"
    )


class Trackio(Section):
    """trackio: on this machine, or in a Space of the hub."""

    project: str = Field("prefopt", description="project in trackio")
    group: str | None = Field(None, description="group of runs in trackio")
    space: str | None = Field(None, description="Space that it is sent to, NAME or USER/NAME; null: this machine")


class Comet(Section):
    """Comet: an archive in the run folder's `comet/`, which `comet upload` sends."""

    project: str = Field("prefopt", description="project in Comet")
    workspace: str | None = Field(None, description="workspace in Comet; null: one's own")


class Track(Section):
    """Tracking of metrics; metrics.jsonl is always written."""

    every: int = Field(1, gt=0, description="steps between lines of metrics")
    wandb: Wandb | None = Field(None, description="also log to W&B; {} uses the defaults; null: no W&B")
    tensorboard: TensorBoard | None = Field(None, description="also write TensorBoard's event files; {} asks for it")
    mlflow: MLflow | None = Field(None, description="also log to MLflow; {} uses the defaults; null: no MLflow")
    trackio: Trackio | None = Field(None, description="also log to trackio; {} uses the defaults; null: no trackio")
    comet: Comet | None = Field(None, description="also write an archive for Comet; {} uses the defaults; null: none")
    rollouts: int = Field(
        0,
        ge=0,
        description="completions of each step's rollouts that are kept, with their turns and scores, in the run folder's "
        "`rollouts/`; 0: none",
    )
    folder: str = Field("runs", description="folder in which run folders are created")

    def without_trackers(self) -> "Track":
        """The same, with nothing sent to any tracker."""
        return self.model_copy(update=dict.fromkeys(("wandb", "tensorboard", "mlflow", "trackio", "comet")))
