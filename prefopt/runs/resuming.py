"""Going on with a run: whether it is still made of what it began with, and from which checkpoint."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from accelerate import Accelerator
from rich.console import Console

from prefopt import recipe
from prefopt.policy.sharding import whole_weights
from prefopt.runs.extending import extension, in_words, is_longer, set_aside
from prefopt.runs.folder import RunFolder
from prefopt.runs.manifest import changed_parts, manifest
from prefopt.support.errors import DivergenceError, PrefoptError
from prefopt.training.checkpoints import checkpoints, load_newest
from prefopt.training.devices import on_main_process
from prefopt.training.trackers import rewind

if TYPE_CHECKING:
    from prefopt.runs.preparing import Prepared
    from prefopt.training.loop import Trainer

SAID = ("versions", "git", "device", "environment", "plugins")
"""Parts of the manifest that may change when a run goes on, which is said and recorded."""


def write_beginning(prepared: "Prepared", folder: RunFolder, console: Console) -> dict[str, Any] | None:
    """Write what a new run is and what it is made of; compare one that goes on with its beginning. On every process.

    Returns:
        The manifest of a run that goes on, for `write_resumption`; None of a new one.

    Raises:
        PrefoptError: the data, or a model beside or below the trained one, are not those of the beginning.
    """
    models = [prepared.models.trained, *prepared.others.values()]
    with whole_weights(*models, accelerator=prepared.accelerator):
        lines, resumed = on_main_process(prepared.accelerator, lambda: _begun(prepared, folder))
    for line in lines:
        console.print(line, style="bold yellow", highlight=False, markup=False, soft_wrap=True)
    return resumed


def write_resumption(
    prepared: "Prepared", trainer: "Trainer", folder: RunFolder, resumed: dict[str, Any], console: Console
) -> None:
    """Record that a run goes on, once it does: one that is refused leaves its folder as it was. On every process.

    Args:
        prepared: the run.
        trainer: restored.
        folder: of it.
        resumed: its manifest, with the record, from `write_beginning`.
        console: where it is said that the run is longer now.
    """

    def write() -> None:
        if is_longer(folder, prepared.recipe):
            record = resumed["resumed"][-1]["extended"] = extension(trainer, prepared.recipe, folder)
            console.print(in_words(record), style="bold yellow", highlight=False, markup=False, soft_wrap=True)
            set_aside(folder, record)
        folder.write_manifest(resumed)
        if "recipe" in resumed["resumed"][-1]:
            folder.write_recipe(prepared.recipe)

    on_main_process(prepared.accelerator, write)


def _begun(prepared: "Prepared", folder: RunFolder) -> tuple[list[str], dict[str, Any] | None]:
    """What should be said of the differences to the beginning, and the manifest that will record them."""
    settings = prepared.recipe
    content = json.loads(json.dumps(manifest(prepared), default=repr))
    if not folder.begun or not folder.has_numbers:
        folder.write_recipe(settings)  # from here on it can be resumed
        folder.write_manifest(content)
        return [], None
    begun = folder.manifest()
    if different := changed_parts(begun, content):
        raise PrefoptError(
            f"{folder}: since the run began, {' and '.join(different)} changed (manifest.json has the fingerprints), and its "
            "numbers would be of two things: bring back what it began with, or begin anew in another folder"
        )
    record, lines = _changes(begun, content), []
    if circumstances := {key: value for key, value in record.items() if key != "started"}:
        lines = [
            f"not as when the run began: {'; '.join(map(_in_words, circumstances.items()))}; manifest.json records it"
        ]
    if keys := recipe.differences(folder.recipe().model_dump(mode="json"), settings.model_dump(mode="json")):
        record["recipe"] = {key: list(values) for key, values in keys.items()}
    return lines, (begun or content) | {"resumed": [*begun.get("resumed", ()), record]}


def _changes(begun: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, Any]:
    """A record of going on: when, and what of the circumstances changed."""
    record: dict[str, Any] = {"started": datetime.now(UTC).isoformat(timespec="seconds")}
    for name in SAID:
        before, after = begun.get(name), now[name]
        if name == "plugins" and before is not None:  # a file that one of them does not list was not edited
            before, after = ({file: part[file] for file in before.keys() & after.keys()} for part in (before, after))
        if name in begun and (values := recipe.differences(before, after, name)):
            record |= {key: list(pair) for key, pair in values.items()}
    return record


def _in_words(change: tuple[str, tuple[Any, Any]]) -> str:
    key, (before, now) = change
    if key.startswith("plugins."):
        return f"{key.removeprefix('plugins.')} was edited"
    return f"{key} {before} → {now}"


def restore(trainer: "Trainer", folder: RunFolder, console: Console) -> int:
    """Load the newest checkpoint of a resumed run that can be read; the number of steps behind it."""
    load_newest(trainer, folder.checkpoints)
    if trainer.accelerator.is_main_process:
        folder.diverged_file.unlink(missing_ok=True)  # if it does again, that is noted again
        rewind(folder.metrics_file, trainer.done)
    console.print(f"resumed at step {trainer.done} of {trainer.steps}", highlight=False)
    return trainer.done


@contextmanager
def noting_divergence(folder: RunFolder, accelerator: Accelerator) -> Iterator[None]:
    """Have the folder say that training diverged, for whoever asks later how the run goes on."""
    try:
        yield
    except DivergenceError as error:
        if accelerator.is_main_process:
            folder.write_divergence(str(error))
        raise


def kept(folder: RunFolder, error: BaseException) -> str:
    """What there is of a run that this ends early, and how it goes on."""
    if not folder.begun or folder.finished:
        return f"{folder} is finished" if folder.finished else ""
    go_on = f"prefopt run {folder} --resume"
    if folder.trained:
        return f"{folder.policy} holds the trained model; what is left is the evaluation at the end: {go_on}"
    saved = checkpoints(folder.checkpoints)
    if isinstance(error, DivergenceError):
        held = (
            f"{saved[-1]} keeps what was done up to there, and a run can begin from it (policy.model); a"
            if saved
            else "a"
        )
        return f"{held} resume has the same settings and would diverge again"
    if saved:
        return f"{saved[-1]} keeps what was done up to there; to go on: {go_on}"
    return f"no checkpoint was saved yet (train.checkpoint_every), so this begins again at step 0: {go_on}"


def has_checkpoint(folder: RunFolder) -> bool:
    """Whether a resume has something to go on from."""
    return bool(checkpoints(folder.checkpoints))
