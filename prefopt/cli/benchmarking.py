"""The verb that measures on the benchmarks of others: benchmark."""

import argparse
from pathlib import Path

from prefopt.cli import consoles
from prefopt.cli.measuring import keep, new_file, show_left_out
from prefopt.support.errors import PrefoptError
from prefopt.support.logs import quiet_libraries


def benchmark(options: argparse.Namespace) -> None:
    """`prefopt benchmark`."""
    if (options.data is None) == (options.tasks is None):
        raise PrefoptError(
            "give --data FILE, rows of a benchmark of reward models or judges, or --tasks NAME,… of lm-evaluation-harness"
        )
    of_the_other = ("include", "fewshot") if options.tasks is None else ("kind", "reward", "reference")
    if given := [name for name in of_the_other if getattr(options, name) is not None]:
        name = {"kind": "as"}.get(given[0], given[0])
        raise PrefoptError(f"--{name} says nothing of --{'data' if options.tasks is None else 'tasks'}: leave it out")
    target = new_file(options.out)
    if options.add and not Path(options.target).is_dir():
        raise PrefoptError(f"--add keeps the result in a finished run's folder, and {options.target} is no folder")
    measure = _rows if options.tasks is None else _tasks
    if not options.add:
        quiet_libraries()
        return measure(options, options.target, target)
    folders = _to_add_to(options)
    if target is not None and len(folders) > 1:
        raise PrefoptError(f"--out names one file, and {options.target} holds {len(folders)} runs: leave it out")
    quiet_libraries()
    for folder in folders:
        measure(options, str(folder), target)


def _to_add_to(options: argparse.Namespace) -> list[Path]:
    """The folders of the runs that get the result; says which of a study's do not."""
    from prefopt.runs.benchmark.adding import name_of_rows, name_of_tasks, result_name, runs_to_add_to

    of = name_of_rows(options.data) if options.tasks is None else name_of_tasks(options.tasks)
    folders, left_out = runs_to_add_to(Path(options.target), result_name(options.name, of))
    show_left_out(left_out)
    return folders


def _rows(options: argparse.Namespace, name: str, target: Path | None) -> None:
    from prefopt.runs.benchmark.measuring import benchmark as measure
    from prefopt.runs.benchmark.measuring import to_json
    from prefopt.runs.benchmark.showing import show_measured
    from prefopt.runs.benchmark.targets import Manner

    manner = Manner(options.reward, options.reference, options.prompts, options.batch_size)
    measured, made = measure(
        name, options.data, consoles.err, overrides=options.overrides, manner=manner, kind=options.kind,
        limit=options.limit, called=options.name, add=options.add,
    )  # fmt: skip
    show_measured(consoles.out, measured, made, options.name or Path(options.data).stem)
    keep(target, to_json(measured, made))


def _tasks(options: argparse.Namespace, name: str, target: Path | None) -> None:
    from prefopt.runs.benchmark.showing import show_tasks
    from prefopt.runs.benchmark.tasks import tasks, to_json

    found, made = tasks(
        name, options.tasks.split(","), consoles.err, overrides=options.overrides, include=options.include or (),
        prompts=options.prompts, limit=options.limit, fewshot=options.fewshot, batch_size=options.batch_size,
        called=options.name, add=options.add,
    )  # fmt: skip
    show_tasks(consoles.out, found, made)
    keep(target, to_json(found, made))
