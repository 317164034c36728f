"""Verbs that train: run, study."""

import argparse
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from prefopt.cli import consoles
from prefopt.runs.results import show_result
from prefopt.support.errors import PrefoptError
from prefopt.support.logs import quiet_libraries

if TYPE_CHECKING:
    from prefopt.recipe import Recipe


def run(options: argparse.Namespace) -> None:
    """`prefopt run`."""
    from prefopt.recipe import load_recipe
    from prefopt.runs.claiming import refuse_taken, unfinished
    from prefopt.runs.folder import RunFolder
    from prefopt.runs.naming import refuse_unknown_names

    folder = Path(options.out) if options.out else None
    if Path(options.recipe).is_dir():
        folder = Path(options.recipe)
        settings = RunFolder(folder).recipe(options.overrides)
        if not options.resume or options.out:
            raise PrefoptError(
                f"{folder} is a run folder; it can only go on: prefopt run {folder} --resume (train.steps=N goes on to more steps)"
            )
    else:
        settings = load_recipe(options.recipe, options.overrides)
        if options.resume and folder is None:
            folder = unfinished(settings)
    if folder is not None and not options.dry_run:
        refuse_taken(RunFolder(folder), settings if options.resume else None)
    if not options.resume:  # what is left of a run may need less than it began with
        refuse_unknown_names(settings)
    _train(settings, folder, options)


def _train(settings: "Recipe", folder: Path | None, options: argparse.Namespace) -> None:
    """Train, or check that it can be done; only here is torch imported, which takes seconds."""
    from prefopt.runs.folder import RunFolder
    from prefopt.runs.results import show_profile
    from prefopt.runs.run import run as train
    from prefopt.support.profile import profiling
    from prefopt.support.threads import PhaseThreads
    from prefopt.training.devices import end_processes

    quiet_libraries()
    if options.dry_run:
        return _dry_run(settings)
    with profiling(options.began) if options.profile else nullcontext() as clock:
        result = train(settings, folder, options.resume, consoles.err)
    end_processes()
    if consoles.is_main_process():
        consoles.err.print()
    show_result(consoles.out, result, settings.evaluate.confidence)
    if clock is not None:
        device = RunFolder(result.folder).manifest().get("device") or {}
        show_profile(consoles.out, clock, PhaseThreads.of(device.get("threads")))


def study(options: argparse.Namespace) -> None:
    """`prefopt study`."""
    if options.status or options.watch or options.stop:
        return _look_at_study(options)
    from prefopt.study.naming import refuse_unknown_names
    from prefopt.study.plan import StudyPlan
    from prefopt.study.spec import load_study, study_folder

    settings = load_study(options.study, options.overrides)
    refuse_unknown_names(StudyPlan(settings, study_folder(settings, options.out)))

    from prefopt.study.question import plan_study  # with torch
    from prefopt.study.run import check, run_study, what_failed
    from prefopt.study.stopping import asked_to_stop
    from prefopt.support.sharing import sharing

    quiet_libraries()
    planned = plan_study(settings, study_folder(settings, options.out))
    if not options.dry_run:
        run_study(settings, options.out, options.jobs, options.on, console=consoles.out)
        if failed := what_failed(planned):
            consoles.err.print(failed, soft_wrap=True)
        if failed or asked_to_stop(planned.folder):
            sys.exit(1)
        return
    from prefopt.study.executors import executor_on
    from prefopt.study.preview import show_plan

    with sharing():
        check(planned)
        executor_on(options.on, settings.executor, options.jobs).check()
        show_plan(planned, options.jobs or 1, consoles.out, timed=not options.untimed)


def _look_at_study(options: argparse.Namespace) -> None:
    """What the folder of a study says, or a wish to stop put into it; nothing else is touched."""
    from prefopt.study.spec import load_study, study_folder
    from prefopt.study.status import read_status
    from prefopt.study.status_table import show_status, watch
    from prefopt.study.stopping import ask_to_stop

    folder = Path(options.out or options.study)
    if not folder.is_dir() or options.out:
        folder = study_folder(load_study(options.study, options.overrides), options.out)
    if options.stop:
        if not read_status(folder).stoppable:
            raise PrefoptError(
                f"nobody works on {folder}, and there is nothing to stop; a study that was started just now can be stopped once "
                "its libraries are loaded and its recipes checked: ask again"
            )
        ask_to_stop(folder)
        consoles.out.print(
            "asked to stop: runs that work now save a checkpoint after their step and end, and no other begins"
        )
    elif options.watch:
        watch(consoles.out, folder)
    else:
        show_status(consoles.out, folder)


def _dry_run(settings: "Recipe") -> None:
    """The recipe, which is long, and below it what was found: the data as a run shows them, and the plan."""
    from prefopt.runs.dry_run import describe_dry_run, dry_run

    shown = consoles.err.capture()
    try:
        with shown:
            checked = dry_run(settings, consoles.err)
        consoles.out.print(settings.to_yaml(), markup=False, soft_wrap=True)
        consoles.out.file.flush()
    finally:
        consoles.err.file.write(shown.get())
        consoles.err.file.flush()
    for line in describe_dry_run(checked):
        consoles.out.print(f"# {line}", markup=False, soft_wrap=True)
