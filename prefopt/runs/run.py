"""One run: from a recipe to a folder of results."""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from rich.console import Console

from prefopt import recipe
from prefopt.evaluation.evaluator import Evaluation
from prefopt.policy import Policy, Scorer
from prefopt.runs.accounting import spent
from prefopt.runs.folder import RunFolder
from prefopt.runs.inspecting import measure, trained
from prefopt.runs.manifest import date_of, manifest
from prefopt.runs.measuring import Measurements, flat, keep_evaluation
from prefopt.runs.outcome import RunResult
from prefopt.runs.preparing import Prepared, prepare
from prefopt.runs.progress import show_limit, shown
from prefopt.sources.diagnostics import RolloutDiagnostics, beyond
from prefopt.support.dates import fixed_date
from prefopt.support.errors import PrefoptError, nearest
from prefopt.support.files import is_empty, locked, replacing_folder, unused
from prefopt.support.json_values import json_values
from prefopt.support.logs import silence_telemetry
from prefopt.support.profile import timed
from prefopt.support.system_errors import noting
from prefopt.support.terminal import Terminal
from prefopt.training.callbacks import Callback, make_callbacks, reason_to_stop
from prefopt.training.checkpoints import checkpoints, load_checkpoint, save_checkpoint
from prefopt.training.devices import computing, entered_on_main_process, on_main_process
from prefopt.training.loop import Step, Trainer
from prefopt.training.trackers import Jsonl, Tracker, WandbRun, rewind
from prefopt.types import Estimate


def run(
    settings: recipe.Recipe, folder: Path | None = None, resume: bool = False, console: Console | None = None
) -> RunResult:
    """Train, evaluate before and after, and write everything down.

    The process is left as it was: CPU threads, precision and random states are this run's alone.

    Args:
        settings: what to run.
        folder: the run folder; by default a new one below `track.folder`, named after the recipe and the seed.
        resume: go on from the last checkpoint in `folder`; where training is over, only evaluate and conclude.
        console: where a person follows it.

    Raises:
        PrefoptError: whatever a user can put right. What was done so far is kept.
    """
    silence_telemetry()
    with (
        computing(settings.train) as accelerator,
        entered_on_main_process(accelerator, lambda: _claimed(settings, folder, resume)) as opened,
        noting(lambda: _kept(opened)),
        fixed_date(on_main_process(accelerator, lambda: date_of(opened.manifest()))),
    ):
        console = (console or Terminal(stderr=True)) if accelerator.is_main_process else Terminal(quiet=True)
        if opened.trained:
            tracker = _tracker(settings, opened, accelerator)
            return _tracked(tracker, lambda: _conclude_trained(settings, opened, tracker, accelerator, console))
        with timed("loading"):
            prepared = prepare(settings, accelerator, console, opened.path)
            trainer = _begin(prepared, opened, console)
        done = _restore(trainer, opened, console) if resume else 0
        tracker = _tracker(settings, opened, accelerator)
        measurements = Measurements(prepared, opened, tracker, console)
        return _tracked(tracker, lambda: _train(prepared, trainer, measurements, done))


def _train(prepared: Prepared, trainer: Trainer, measurements: Measurements, done: int) -> RunResult:
    """From the evaluation at the start to that at the end; what was trained is saved before the latter, which may fail."""
    console, folder = measurements.console, measurements.folder
    before = measurements.keep(_bare(trainer), 0)
    stopped, warned = "", set[str]()
    callbacks = _callbacks(prepared, folder)
    for step in shown(trainer, prepared.plan.steps, console, done=done):
        _after(step, prepared, trainer, measurements)
        limited = _limited(step, prepared.recipe.train, warned, console)
        if stopped := limited or reason_to_stop(callbacks, step, prepared.accelerator):
            console.print(f"stopped: {stopped}", highlight=False, markup=False, soft_wrap=True)
            break
    _save(prepared, trainer, folder, stopped)
    after = measurements.keep(_bare(trainer), trainer.done) if trainer.done else before
    return _conclude(folder, prepared.accelerator, before, after)


def _save(prepared: Prepared, trainer: Trainer, folder: RunFolder, stopped: str) -> None:
    """The trained model, and with what its training ended: from here on a resume only evaluates and concludes."""
    if prepared.accelerator.is_main_process:
        with replacing_folder(folder.policy) as staging:
            _bare(trainer).save(staging)
        part = prepared.recipe.evaluate.part
        ending = {
            "steps": trainer.done,
            "stopped": stopped,
            "costs": asdict(spent(prepared, trainer)),
            "evaluated_on": {"split": part, "rows": len(prepared.evaluators[part].rows)},
            "writes": isinstance(prepared.models.trained, Policy),
        }
        folder.write_training(ending)
    prepared.accelerator.wait_for_everyone()


def _after(step: Step, prepared: Prepared, trainer: Trainer, measurements: Measurements) -> None:
    """Log, evaluate and save, as often as the recipe says."""
    settings, train = prepared.recipe, prepared.recipe.train
    if prepared.rollouts is not None:
        step.metrics |= prepared.rollouts.metrics
    if step.number % settings.track.every == 0:
        of_step = {"tokens": step.tokens, "seconds": round(step.seconds, 4), "batch": step.batch}
        measurements.tracker.log(step.number, {**step.metrics, **of_step})
    if settings.evaluate.every and step.number % settings.evaluate.every == 0 and step.number < prepared.plan.steps:
        measurements.validate(_bare(trainer), step.number)
    if train.checkpoint_every and step.number % train.checkpoint_every == 0:
        with timed("checkpoint"):
            folder = measurements.folder.checkpoints
            save_checkpoint(prepared.accelerator, folder, step.number, train.keep_checkpoints)


def _kept(folder: RunFolder) -> str:
    """What there is of a run that ends early, and how it goes on."""
    if not folder.begun or folder.finished:
        return f"{folder} is finished" if folder.finished else ""
    go_on = f"prefopt run {folder} --resume"
    if folder.trained:
        return f"{folder.policy} holds the trained model; what is left is the evaluation at the end: {go_on}"
    if saved := checkpoints(folder.checkpoints):
        return f"{saved[-1]} keeps what was done up to there; to go on: {go_on}"
    return f"no checkpoint was saved yet (train.checkpoint_every), so this begins again at step 0: {go_on}"


def _callbacks(prepared: Prepared, folder: RunFolder) -> dict[str, Callback]:
    models = prepared.models
    running = {
        "accelerator": prepared.accelerator,
        "policy": models.trained,
        "tokenizer": models.tokenizer,
        "folder": folder.path,
    }
    return make_callbacks(prepared.recipe.train.callbacks, running)


def _limited(step: Step, train: recipe.Train, warned: set[str], console: Console) -> str:
    """Why to stop, if the recipe says so; warns, once for each metric, of what has left its bounds."""
    if unknown := [name for name in train.limits if name not in step.metrics]:
        guess = nearest(unknown[0], step.metrics)
        raise PrefoptError(
            f"train.limits: this run has no metric {unknown[0]!r}.{guess} It has: {', '.join(step.metrics)}"
        )
    out = beyond(step.metrics, train.limits)
    for name, what in out.items():
        if name not in warned:
            warned.add(name)
            show_limit(console, step.number, what)
    return f"step {step.number}: {'; '.join(out.values())}" if out and train.beyond == "stop" else ""


def _conclude(folder: RunFolder, accelerator: Accelerator, before: Evaluation, after: Evaluation) -> RunResult:
    """Write the summary, after which the run is finished."""
    training = folder.training()
    numbers = {n: (before.numbers.get(n, math.nan), value) for n, value in after.numbers.items()}
    result = RunResult(
        folder.path,
        before.estimates(),
        after.estimates(),
        after.change_since(before),
        numbers,
        training["evaluated_on"]["rows"],
        training["writes"],
    )
    accelerator.wait_for_everyone()  # all have read how training ended, which the summary takes the place of
    if accelerator.is_main_process:
        summary = {
            "steps": training["steps"],
            **({"stopped": training["stopped"]} if training["stopped"] else {}),
            "evaluated_on": training["evaluated_on"],
            "costs": training["costs"],
            "before": _records(result.before) | json_values(before.numbers),
            "after": _records(result.after) | json_values(after.numbers),
            "change": _records(result.change),
        }
        folder.write_summary(summary)
    accelerator.wait_for_everyone()
    return result


def _conclude_trained(
    settings: recipe.Recipe, folder: RunFolder, tracker: Tracker, accelerator: Accelerator, console: Console
) -> RunResult:
    """What is left of a run whose model is trained and saved: the evaluation at the end, and the summary.

    Raises:
        PrefoptError: the evaluation at the start is missing.
    """
    step, part = folder.training()["steps"], settings.evaluate.part
    console.print(f"trained already, {step} steps; what is left is the evaluation at the end", highlight=False)
    before, after = folder.evaluation(part, 0), folder.evaluation(part, step)
    if before is None:
        raise PrefoptError(f"{folder.evaluation_file(part, 0)} is missing: restore it, or run anew in another folder")
    if after is None:
        after = measure(trained(folder.path), part, accelerator, console)
    keep_evaluation(folder, tracker, after, part, step, accelerator.is_main_process)
    return _conclude(folder, accelerator, before, after)


def _tracked(tracker: Tracker, work: Callable[[], RunResult]) -> RunResult:
    """What the work comes to; the trackers hear how it ended."""
    try:
        result = work()
    except BaseException:
        tracker.finish({"finished": False})
        raise
    tracker.finish(flat(result.after) | {"finished": True})
    return result


@contextmanager
def _claimed(settings: recipe.Recipe, folder: Path | None, resume: bool) -> Iterator[RunFolder]:
    """The run folder, for this run alone.

    Raises:
        PrefoptError: it holds another run, this one is finished, or another process works in it.
    """
    path = unused(Path(settings.track.folder) / f"{settings.name}-seed{settings.seed}") if folder is None else folder
    claimed, resumed = RunFolder(path), settings if resume else None
    _refuse_folder(claimed, resumed)
    with locked(path):
        _refuse_folder(claimed, resumed)  # another process may have just left it
        yield claimed


def _refuse_folder(folder: RunFolder, resumed: recipe.Recipe | None) -> None:
    """A new run wants a new folder; a resumed one a folder of the same recipe that has not come to its end."""
    if resumed is None:
        if not is_empty(folder.path):
            raise PrefoptError(
                f"{folder} is there already, and nothing is overwritten: name another, or resume it with --resume"
            )
        return
    if folder.finished:
        raise PrefoptError(f"{folder} is finished: its results are in summary.json")
    if different := recipe.differences(folder.recipe().model_dump(mode="json"), resumed.model_dump(mode="json")):
        raise PrefoptError(f"{folder} was run with another recipe; it differs in {', '.join(different)}")


def _begin(prepared: Prepared, folder: RunFolder, console: Console) -> Trainer:
    """Write what the run is, and put its trainer together."""
    settings, accelerator = prepared.recipe, prepared.accelerator
    console.print(f"\nrun folder {folder}/", highlight=False, soft_wrap=True)
    if accelerator.is_main_process and not folder.begun:
        folder.write_recipe(settings)  # from here on it can be resumed
    if prepared.rollouts is not None and not checkpoints(folder.checkpoints):  # a checkpoint has what was fitted
        with console.status("scoring samples of the reference"):
            # The policy at step 0 is the reference.
            prepared.rollouts.fit(prepared.models.reference or prepared.models.trained)
    trainer = make_trainer(prepared, folder.path)
    accelerator.register_for_checkpointing(trainer)
    if accelerator.is_main_process and not folder.manifest_file.exists():
        folder.write_manifest(manifest(prepared))
    return trainer


def make_trainer(prepared: Prepared, folder: Path | None = None) -> Trainer:
    """The loop over a run's batches, before its first step.

    Args:
        prepared: the run.
        folder: where a batch goes that made the loss non-finite.
    """
    return Trainer(
        prepared.models.trained,
        prepared.terms,
        prepared.source,
        prepared.recipe.train,
        prepared.plan.steps,
        prepared.accelerator,
        prepared.models.reference,
        prepared.recipe.seed_of("order"),
        folder,
        RolloutDiagnostics() if prepared.rollouts is not None else None,
    )


def _restore(trainer: Trainer, folder: RunFolder, console: Console) -> int:
    """Load the last checkpoint of a resumed run; the number of steps behind it."""
    saved = checkpoints(folder.checkpoints)
    if saved:
        load_checkpoint(trainer.accelerator, saved[-1])
    if trainer.accelerator.is_main_process:
        rewind(folder.metrics_file, trainer.done)
    console.print(f"resumed at step {trainer.done} of {trainer.steps}", highlight=False)
    return trainer.done


def _tracker(settings: recipe.Recipe, folder: RunFolder, accelerator: Accelerator) -> Tracker:
    if not accelerator.is_main_process:
        return Tracker([])
    places: list[Jsonl | WandbRun] = [Jsonl(folder.metrics_file)]
    if settings.track.wandb is not None:
        config, wandb = settings.model_dump(mode="json"), settings.track.wandb
        places.append(WandbRun(wandb, folder.path, wandb.name or folder.path.name, config))
    return Tracker(places)


def _bare(trainer: Trainer) -> Policy | Scorer:
    model: Policy | Scorer = trainer.accelerator.unwrap_model(trainer.model)
    return model


def _records(estimates: Mapping[str, Estimate]) -> dict[str, Any]:
    return {name: json_values(asdict(e)) for name, e in estimates.items()}
