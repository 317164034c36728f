"""What `prefopt` is: the options are read, and a verb is run."""

import argparse
import sys
import time
from collections.abc import Sequence

from prefopt.cli import consoles
from prefopt.cli.exits import ends_in_a_sentence
from prefopt.cli.parser import parser_of_verbs
from prefopt.support.allocator import keep_freed_memory


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a verb; `prefopt.cli.exits` has the exit statuses."""
    began = time.perf_counter()
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a terminal that cannot show a letter gets its number
            stream.reconfigure(errors="backslashreplace")
    consoles.hush_other_processes()
    options = _options(arguments)
    options.began = began
    keep_freed_memory()
    with ends_in_a_sentence():
        options.verb(options)


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The options; key=value may also stand after them, which argparse does not foresee."""
    parser = parser_of_verbs()
    options, rest = parser.parse_known_args(arguments)
    late = getattr(options, "overrides", getattr(options, "fields", None))
    unknown = [argument for argument in rest if late is None or argument.startswith("-") or "=" not in argument]
    if unknown:
        form = "" if late is None else "; what follows the file is written key=value"
        parser.error(f"unrecognized arguments: {' '.join(unknown)}{form}")
    if late is not None:
        late += rest
    return options
