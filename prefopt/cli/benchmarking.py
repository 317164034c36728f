"""The verb that measures on the benchmarks of others: benchmark."""

import argparse
from pathlib import Path

from prefopt.cli import consoles
from prefopt.cli.measuring import keep, new_file
from prefopt.support.errors import PrefoptError
from prefopt.support.logs import quiet_libraries


def benchmark(options: argparse.Namespace) -> None:
    """`prefopt benchmark`."""
    target = new_file(options.out)
    if options.add and not Path(options.target).is_dir():
        raise PrefoptError(f"--add keeps the result in a finished run's folder, and {options.target} is no folder")
    quiet_libraries()
    from prefopt.runs.benchmark.measuring import benchmark as measure
    from prefopt.runs.benchmark.measuring import to_json
    from prefopt.runs.benchmark.showing import show_measured
    from prefopt.runs.benchmark.targets import Manner

    manner = Manner(options.reward, options.reference, options.prompts, options.batch_size)
    measured, made = measure(
        options.target,
        options.data,
        consoles.err,
        overrides=options.overrides,
        manner=manner,
        kind=options.kind,
        limit=options.limit,
        called=options.name,
        add=options.add,
    )
    show_measured(consoles.out, measured, made, options.name or Path(options.data).stem)
    keep(target, to_json(measured, made))
