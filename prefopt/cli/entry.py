"""What `prefopt` is: a verb is run, and what ends it becomes a sentence and an exit status."""

import argparse
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

from rich.markup import escape

from prefopt.cli import consoles
from prefopt.cli.parser import parser_of_verbs
from prefopt.support.allocator import keep_freed_memory
from prefopt.support.errors import PrefoptError


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a verb; what a user can put right is printed without a traceback, with exit status 2."""
    options = _options(arguments)
    keep_freed_memory()
    try:
        options.verb(options)
    except PrefoptError as error:
        consoles.err.print(f"[bold red]error[/] {escape(str(error))}", soft_wrap=True)
        sys.exit(2)
    except SystemExit as error:
        # An exit that a user's function asked for would pass for the end of what was to be done.
        where = traceback.extract_tb(error.__traceback__)[-1]
        if Path(where.filename).is_relative_to(Path(__file__).parent):
            raise
        place = f"{where.filename}:{where.lineno}"
        consoles.err.print(
            f"[bold red]error[/] {escape(f'{place} called sys.exit({error.code!r}); raise an error instead')}",
            soft_wrap=True,
        )
        sys.exit(2)
    except KeyboardInterrupt:
        on = (
            "the same command goes on"
            if options.verb.__name__ in ("label", "study")
            else "--resume goes on from the last checkpoint"
        )
        consoles.err.print(f"interrupted; what was done is kept ({on})")
        sys.exit(130)


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The options; key=value may also stand after them, which argparse does not foresee."""
    parser = parser_of_verbs()
    options, rest = parser.parse_known_args(arguments)
    late = getattr(options, "overrides", getattr(options, "fields", None))
    if rest and (late is None or any(argument.startswith("-") or "=" not in argument for argument in rest)):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if late is not None:
        late += rest
    return options
