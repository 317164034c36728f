"""Training on after the end: a run whose recipe is the same, but longer, goes on from its last checkpoint.

What the earlier end came to stays: its evaluations where they are; its summary, what was measured of it later and, once the longer
run has one of its own, its policy in `earlier/step-NNNNNN/`. What the longer run is not is said: where the learning rate falls with
the length of the run, the result is not that of a run of that length from the start.
"""

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from prefopt.recipe import OF_RUNS, Recipe, material_differences
from prefopt.runs.folder import RunFolder
from prefopt.support.errors import PrefoptError

if TYPE_CHECKING:
    from prefopt.training.loop import Trainer

LENGTH = frozenset({"train.steps", "train.epochs"})
"""The only keys of what is learnt in which a run that goes on may differ from its beginning."""


def is_longer(folder: RunFolder, now: Recipe) -> bool:
    """Whether a recipe gives a run another length than it began with; `refuse_extension` says whether it can be."""
    return folder.begun and bool(material_differences(folder.recipe(), now, OF_RUNS).keys() & LENGTH)


def refuse_extension(folder: RunFolder, now: Recipe) -> None:
    """Refuse another length where a run cannot go on to it.

    Raises:
        PrefoptError: the run would be shorter, was stopped, or has come to its end and has no checkpoint.
    """
    begun = folder.recipe().train
    pairs = ((begun.steps, now.train.steps), (begun.epochs, now.train.epochs))
    if not all(one is other is None or (one is not None and other is not None and other > one) for one, other in pairs):
        length = f"train.steps={begun.steps}" if begun.steps is not None else f"train.epochs={begun.epochs:g}"
        raise PrefoptError(f"{folder} began with {length}, and can only go on to more of these: its updates are made")
    if not (folder.finished or folder.trained):
        return
    if stopped := _ending(folder).get("stopped"):
        raise PrefoptError(
            f"{folder} was stopped ({stopped}) and would be again: with other settings, begin anew in another folder"
        )
    if folder.newest_checkpoint is None:
        raise PrefoptError(
            f"{folder} has no checkpoint, so the state of its optimiser is gone, and it cannot be trained on as if it had not "
            "ended. Run it anew with more steps, or begin a run from its policy, with a fresh optimiser and schedule: "
            f"policy.model={folder} (train.checkpoint_every keeps what this needs)"
        )


CONSTANT = ("constant", "constant_with_warmup")
"""Schedules that do not depend on how many steps there are."""


def extension(trainer: "Trainer", settings: Recipe, folder: RunFolder) -> dict[str, Any]:
    """A record of a run that is restored, and from here on longer.

    Args:
        trainer: with the state of the checkpoint.
        settings: of the longer run.
        folder: of the run, as its earlier end left it.
    """
    train, rollouts = settings.train, settings.source.rollouts
    rates = [line["lr"] for line in folder.history() if line.get("lr") is not None and line["step"] <= trainer.done]
    falls = train.schedule.name not in CONSTANT or 0 < train.warmup < 1
    paced = rollouts is not None and rollouts.order == "self-paced"
    return {
        "ended": _ending(folder).get("steps"),
        "from": trainer.done,
        "to": trainer.steps,
        "lr": [rates[-1] if rates else None, trainer.schedule.get_last_lr()[0]],
        "by_length": [*["the learning rate"] * falls, *["the order of prompts"] * paced],
    }


def in_words(record: Mapping[str, Any]) -> str:
    """What such a record says, and what it means for the result."""
    begun, whole = f"extended from step {record['from']} to {record['to']}", f"a run of {record['to']} steps"
    if not record["by_length"]:
        return f"{begun}; nothing in it depends on its length, so the result is that of {whole} from the start"
    before, now = (f"{rate:.3g}" if rate is not None else "unknown" for rate in record["lr"])
    return (
        f"{begun}; {' and '.join(record['by_length'])} depends on the length (a rate of {before} before, {now} after), so the "
        f"result is not that of {whole} from the start"
    )


def extensions(manifest: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    """The records of a run's manifest, in order."""
    return [one["extended"] for one in manifest.get("resumed", ()) if "extended" in one]


def set_aside(folder: RunFolder, record: Mapping[str, Any]) -> None:
    """Move what says that the run is over, and what was measured of it since, to `earlier/`.

    Its policy stays until there is another. What says that it is over goes last: where this is interrupted, it is done again.
    """
    if record["ended"] is None:
        return
    place = folder.earlier(record["ended"])
    place.mkdir(parents=True, exist_ok=True)
    for one in (folder.measured_folder, folder.trained_file, folder.summary_file):
        if one.exists():
            os.replace(one, place / one.name)


def set_policy_aside(folder: RunFolder) -> None:
    """Move the policy of an earlier end to `earlier/`, now that another is complete and takes its place."""
    ends = [one["ended"] for one in extensions(folder.manifest()) if one["ended"] is not None]
    if ends and folder.policy.is_dir() and not (target := folder.earlier(ends[-1]) / folder.policy.name).exists():
        folder.policy.rename(target)


def _ending(folder: RunFolder) -> Mapping[str, Any]:
    """How training ended; empty where it did not."""
    return folder.training() or folder.summary()
