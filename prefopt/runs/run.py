"""One run: from a recipe to a folder of results."""

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from rich.console import Console

from prefopt import recipe
from prefopt.evaluation.evaluation import Evaluation, with_sets
from prefopt.policy import Policy, Scorer
from prefopt.policy.sharding import whole_weights
from prefopt.runs.accounting import spent
from prefopt.runs.card import write_card
from prefopt.runs.choosing import Choice
from prefopt.runs.claiming import claimed
from prefopt.runs.extending import extensions, is_longer, set_policy_aside
from prefopt.runs.folder import RunFolder
from prefopt.runs.inspecting import measure, trained
from prefopt.runs.manifest import date_of
from prefopt.runs.measuring import Measurements, evaluated, flat, keep_evaluation, parts_at_ends
from prefopt.runs.outcome import RunResult
from prefopt.runs.pausing import Asked, pause_if_asked, remove_checkpoint_of_pause
from prefopt.runs.preparing import Prepared, prepare
from prefopt.runs.progress import show_chosen, show_limit, show_warnings, shown
from prefopt.runs.resuming import has_checkpoint, kept, noting_divergence, restore, write_beginning, write_resumption
from prefopt.runs.step_metrics import check_limits
from prefopt.sources.diagnostics import RolloutDiagnostics, beyond
from prefopt.support.dates import fixed_date
from prefopt.support.files import replacing_folder
from prefopt.support.json_values import json_values
from prefopt.support.logs import silence_telemetry
from prefopt.support.profile import timed
from prefopt.support.system_errors import noting
from prefopt.support.terminal import Terminal
from prefopt.training.callbacks import Callback, make_callbacks, reason_to_stop
from prefopt.training.checkpoints import check_state, save_checkpoint
from prefopt.training.devices import computing, entered_on_main_process, of_main_process, on_main_process
from prefopt.training.environment import said
from prefopt.training.loop import Step, Trainer
from prefopt.training.other_trackers import About, refuse_missing
from prefopt.training.other_trackers import opened as opened_trackers
from prefopt.training.trackers import Jsonl, Place, Tracker, WandbRun, new_wandb_id
from prefopt.types import Estimate


def run(
    settings: recipe.Recipe,
    folder: Path | None = None,
    resume: bool = False,
    console: Console | None = None,
    pause: Asked | None = None,
) -> RunResult:
    """Train, evaluate before and after, and write everything down.

    The process is left as it was: CPU threads, precision and random states are this run's alone.

    Args:
        settings: what to run.
        folder: the run folder; by default a new one below `track.folder`, named after the recipe and the seed.
        resume: go on from the last checkpoint in `folder`, also to more steps than it was begun with; where training is over, only
            evaluate and conclude.
        console: where a person follows it.
        pause: whether to save a checkpoint and end; asked after every step, on the main process. None: never.

    Raises:
        PrefoptError: whatever a user can put right. What was done so far is kept.
        Paused: as it was asked.
    """
    silence_telemetry()
    refuse_missing(settings.track)
    with (
        computing(settings.train, settings.train.shard is not None and settings.train.shard.offload) as accelerator,
        entered_on_main_process(accelerator, lambda: claimed(settings, folder, resume)) as opened,
        noting(lambda error: kept(opened, error)),
        noting_divergence(opened, accelerator),
        fixed_date(on_main_process(accelerator, lambda: date_of(opened.manifest()))),
    ):
        console = of_main_process(accelerator, console or Terminal(stderr=True))
        for line in said(settings.track.wandb):
            console.print(line, style="yellow", highlight=False, soft_wrap=True)
        if opened.trained and not is_longer(opened, settings):
            tracker = _tracker(settings, opened, accelerator)
            return _tracked(tracker, lambda: _conclude_trained(settings, opened, tracker, accelerator, console))
        with timed("loading"):
            prepared = prepare(settings, accelerator, console, opened.path)
            console.print(f"\nrun folder {opened}/", highlight=False, soft_wrap=True)
            resumed = write_beginning(prepared, opened, console)
            trainer = _begin(prepared, opened, console)
        before = evaluated(prepared, opened, _bare(trainer), 0, console)  # while the model is that of the beginning
        with timed("loading"):
            done = restore(trainer, opened, console) if resume else 0
            if resumed is not None:
                write_resumption(prepared, trainer, opened, resumed, console)
        with timed("tracking"):
            tracker = _tracker(settings, opened, accelerator)
        measurements = Measurements(prepared, opened, tracker, console)
        return _tracked(tracker, lambda: _train(prepared, trainer, measurements, before, done, pause))


def _train(
    prepared: Prepared,
    trainer: Trainer,
    measurements: Measurements,
    before: Mapping[str, Evaluation],
    done: int,
    pause: Asked | None,
) -> RunResult:
    """Up to the evaluation at the end; what was trained is saved before that, which may fail."""
    console, folder = measurements.console, measurements.folder
    measurements.keep(before, 0)
    choice, warned = Choice(prepared.recipe.train, folder, prepared.accelerator), set[str]()
    callbacks = _callbacks(prepared, folder)
    # A kill may have come between the checkpoint of the last step and the end.
    stopped = _limited_before(prepared, trainer, folder) or choice.reason_to_stop(trainer.done, trainer.steps)
    for step in () if stopped else shown(trainer, prepared.plan.steps, console, done=done):
        if prepared.rollouts is not None:
            step.metrics |= prepared.rollouts.metrics
        limited = _limited(step, prepared.recipe.train, warned, console)
        _after(step, prepared, trainer, measurements, choice, bool(limited))
        waited = choice.reason_to_stop(step.number, trainer.steps)
        if stopped := limited or reason_to_stop(callbacks, step, prepared.accelerator) or waited:
            console.print(f"stopped: {stopped}", highlight=False, markup=False, soft_wrap=True)
            break
        pause_if_asked(pause, trainer, folder)
    with timed("checking"):
        trainer.check_finite()
    chosen = choice.put_back(_bare(trainer), trainer.done)
    show_chosen(console, chosen, trainer.done)
    if prepared.rollouts is not None and trainer.done and not prepared.rollouts.version:
        show_warnings(
            console, [f"no batch of rollouts had anything to learn from; of the last: {prepared.rollouts.unused}"]
        )
    _save(prepared, trainer, folder, stopped, chosen)
    choice.remove()
    remove_checkpoint_of_pause(trainer, folder)
    after = before
    if trainer.done:
        of = chosen.get("step", trainer.done)
        after = evaluated(prepared, folder, _bare(trainer), of, console)
        measurements.keep(after, trainer.done, of)
    with timed("concluding"):
        return _conclude(folder, prepared.accelerator, before, after)


def _save(prepared: Prepared, trainer: Trainer, folder: RunFolder, stopped: str, chosen: Mapping[str, Any]) -> None:
    """The trained model, and with what its training ended: from here on a resume only evaluates and concludes."""
    with timed("saving"), whole_weights(_bare(trainer), accelerator=prepared.accelerator):
        if prepared.accelerator.is_main_process:
            with replacing_folder(folder.policy) as staging:
                _bare(trainer).save(staging)
                set_policy_aside(folder)
    if prepared.rollouts is not None:
        prepared.rollouts.settle()
    if prepared.accelerator.is_main_process:
        part = prepared.recipe.evaluate.part
        ending = {
            "steps": trainer.done,
            "stopped": stopped,
            "chosen": chosen,
            "costs": asdict(spent(prepared, trainer)),
            "evaluated_on": {
                "split": part,
                "rows": len(prepared.evaluators[part].rows),
                "sets": _rows_of_sets(prepared),
            },
            "parts": list(parts_at_ends(prepared)),
            "writes": isinstance(prepared.models.trained, Policy),
        }
        folder.write_training(ending)
    prepared.accelerator.wait_for_everyone()


def _rows_of_sets(prepared: Prepared) -> dict[str, int]:
    return {name: len(prepared.evaluators[name].rows) for name in prepared.recipe.evaluate.sets}


def _after(
    step: Step, prepared: Prepared, trainer: Trainer, measurements: Measurements, choice: Choice, limited: bool
) -> None:
    """Log, evaluate and save, as often as the recipe says; a step that ends the run by its limits is logged in any case."""
    settings, train = prepared.recipe, prepared.recipe.train
    if limited or step.number % settings.track.every == 0:
        of_step = {"tokens": step.tokens, "seconds": round(step.seconds, 4), "batch": step.batch}
        measurements.tracker.log(step.number, {**step.metrics, **of_step})
    if settings.track.rollouts and prepared.rollouts is not None and prepared.accelerator.is_main_process:
        measurements.folder.write_rollouts(step.number, prepared.rollouts.records(settings.track.rollouts))
    last = step.number == prepared.plan.steps
    measures = settings.evaluate.every and step.number % settings.evaluate.every == 0 and not last
    measures = measures or (last and train.keep_best is not None)  # otherwise the end is measured when all is over
    saves = train.checkpoint_every and step.number % train.checkpoint_every == 0
    if measures or saves:
        trainer.check_finite()
    if measures:
        if prepared.rollouts is not None:
            prepared.rollouts.settle()
        measurements.validate(_bare(trainer), step.number)
        choice.keep(_bare(trainer), step.number)
    if saves:
        with timed("checkpoint"):
            save_checkpoint(trainer, measurements.folder.checkpoints, step.number, train.keep_checkpoints)


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
    # Checked while planning; but whether a sampler has log-probs shows only now. A step without rows has hardly a metric.
    if step.tokens:
        check_limits(train.limits, step.metrics)
    out = beyond(step.metrics, train.limits)
    for name, what in out.items():
        if name not in warned:
            warned.add(name)
            show_limit(console, step.number, what)
    return f"step {step.number}: {'; '.join(out.values())}" if out and train.beyond == "stop" else ""


def _limited_before(prepared: Prepared, trainer: Trainer, folder: RunFolder) -> str:
    """Why the limits had ended the run at the step of the checkpoint that it goes on from, by the line of that step."""
    train = prepared.recipe.train
    if train.beyond != "stop" or not train.limits or not trainer.done:
        return ""
    lines = on_main_process(prepared.accelerator, lambda: list(folder.history()))
    of_step = {name: value for line in lines if line["step"] == trainer.done for name, value in line.items()}
    out = beyond({name: value for name, value in of_step.items() if value is not None}, train.limits)
    return f"step {trainer.done}: {'; '.join(out.values())}" if out else ""


def _conclude(
    folder: RunFolder, accelerator: Accelerator, begin: Mapping[str, Evaluation], end: Mapping[str, Evaluation]
) -> RunResult:
    """Write the summary, after which the run is finished."""
    training = folder.training()
    before, after = (with_sets(training["evaluated_on"]["split"], of_parts) for of_parts in (begin, end))
    numbers = {n: (before.numbers.get(n, math.nan), value) for n, value in after.numbers.items()}
    result = RunResult(
        folder.path,
        before.estimates(),
        after.estimates(),
        after.change_since(before),
        numbers,
        training["evaluated_on"]["rows"],
        training["evaluated_on"]["split"],
        training["writes"],
        training["evaluated_on"].get("sets", {}),
    )
    if accelerator.is_main_process:
        summary = {
            "steps": training["steps"],
            **{key: training[key] for key in ("stopped", "chosen") if training.get(key)},
            **({"extended": list(longer)} if (longer := extensions(folder.manifest())) else {}),
            "evaluated_on": training["evaluated_on"],
            "costs": training["costs"],
            "before": _records(result.before) | json_values(before.numbers),
            "after": _records(result.after) | json_values(after.numbers),
            "change": _records(result.change),
        }
        folder.write_summary(summary)
        write_card(folder, folder.policy)
    accelerator.wait_for_everyone()
    return result


def _conclude_trained(
    settings: recipe.Recipe, folder: RunFolder, tracker: Tracker, accelerator: Accelerator, console: Console
) -> RunResult:
    """What is left of a run whose model is trained and saved: the evaluation at the end, and the summary."""
    training, begun = folder.training(), folder.manifest()
    step, parts = training["steps"], training.get("parts", [settings.evaluate.part])
    of_end = (training.get("chosen") or {}).get("step", step)
    console.print(f"trained already, {step} steps; what is left is the evaluation at the end", highlight=False)

    def measured(model: Callable[[], recipe.Recipe], at: int, of: int) -> dict[str, Evaluation]:
        kept = {part: folder.evaluation(part, of) for part in parts}
        missing = [part for part, evaluation in kept.items() if evaluation is None]
        evaluations = measure(model(), missing, accelerator, console, begun) if missing else {}
        evaluations |= {part: evaluation for part, evaluation in kept.items() if evaluation is not None}
        for part in parts:
            keep_evaluation(folder, tracker, evaluations[part], part, at, of, accelerator.is_main_process)
        return evaluations

    before, after = measured(lambda: settings, 0, 0), measured(lambda: trained(folder.path), step, of_end)
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


def _begin(prepared: Prepared, folder: RunFolder, console: Console) -> Trainer:
    """Put the trainer together."""
    accelerator, fresh = prepared.accelerator, not has_checkpoint(folder)
    if prepared.rollouts is not None and fresh:  # a checkpoint has what was fitted
        with console.status("scoring samples of the reference"):
            # The policy at step 0 is the reference.
            prepared.rollouts.fit(prepared.models.reference or prepared.models.trained)
    trainer = make_trainer(prepared, folder.path)
    if prepared.recipe.train.checkpoint_every:
        check_state(trainer.state_dict())
    accelerator.wait_for_everyone()
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


def _tracker(settings: recipe.Recipe, folder: RunFolder, accelerator: Accelerator) -> Tracker:
    if not accelerator.is_main_process:
        return Tracker([])
    places: list[Place] = [Jsonl(folder.metrics_file)]
    config = settings.model_dump(mode="json")
    if (wandb := settings.track.wandb) is not None:
        name, run_id = wandb.name or folder.path.name, folder.tracker_id("wandb") or new_wandb_id()
        folder.write_tracker_id("wandb", run_id)
        places.append(WandbRun(wandb, folder.path, name, config, run_id, folder.history()))

    def about(tracker: str) -> About:
        name = f"{settings.name}-seed{settings.seed}"
        return About(folder.path, name, config, folder.tracker_id(tracker), partial(folder.write_tracker_id, tracker))

    return Tracker([*places, *opened_trackers(settings.track, about, folder.history)])


def _bare(trainer: Trainer) -> Policy | Scorer:
    model: Policy | Scorer = trainer.accelerator.unwrap_model(trainer.model)
    return model


def _records(estimates: Mapping[str, Estimate]) -> dict[str, Any]:
    return {name: json_values(asdict(e)) for name, e in estimates.items()}
