"""A run that is asked to pause saves a checkpoint after the step that it is at, and ends; a resume goes on from there."""

import shutil
from collections.abc import Callable

from prefopt.runs.folder import RunFolder
from prefopt.support.errors import PrefoptError
from prefopt.training.checkpoints import check_state, save_checkpoint
from prefopt.training.devices import on_main_process
from prefopt.training.loop import Trainer

Asked = Callable[[], bool]
"""Whether somebody wants it to pause; called often, so it is quick."""


class Paused(Exception):  # noqa: N818 - a wish that was followed, and no error
    """What was asked to pause has done so; everything that it needs to go on is in its folder."""


def pause_if_asked(asked: Asked | None, trainer: Trainer, folder: RunFolder) -> None:
    """Save a checkpoint and end, between two steps; on every process.

    A run whose state cannot be saved, and one that has done its last step, comes to its end instead.

    Raises:
        Paused: asked for, and done.
    """
    if asked is None or trainer.done == trainer.steps or not on_main_process(trainer.accelerator, asked):
        return
    try:
        check_state(trainer.state_dict())
    except PrefoptError:
        return
    trainer.check_finite()
    train = trainer.settings
    if not train.checkpoint_every or trainer.done % train.checkpoint_every:
        save_checkpoint(trainer, folder.checkpoints, trainer.done, train.keep_checkpoints)
    raise Paused


def remove_checkpoint_of_pause(trainer: Trainer, folder: RunFolder) -> None:
    """A run that keeps no checkpoints ends without the one that a pause left."""
    if not trainer.settings.checkpoint_every and trainer.accelerator.is_main_process:
        shutil.rmtree(folder.checkpoints, ignore_errors=True)
