"""How a verb ends: what stopped it becomes a sentence, and the exit status tells the truth.

0    everything was done
1    some of it failed: runs of a study, every row of a labelling, damaged entries of a cache; also a fault of prefopt's own
2    refused, or stopped by something that can be put right: the message says what, where and what to do
129  the terminal was closed (SIGHUP)
130  Ctrl-C (SIGINT)
143  ended by SIGTERM, as job schedulers and `kill` do
"""

import signal
import sys
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import NoReturn

from rich.text import Text

from prefopt.cli import consoles
from prefopt.support.errors import PrefoptError
from prefopt.support.system_errors import system_sentence

FAILED, REFUSED = 1, 2
SIGNALS = {signal.SIGINT: "interrupted", signal.SIGTERM: "ended by SIGTERM", signal.SIGHUP: "the terminal was closed"}
"""What a person is told. Python turns the first into KeyboardInterrupt by itself."""


class Ended(KeyboardInterrupt):
    """A signal asks this process to end; everything that may end by Ctrl-C may end by it.

    Attributes:
        number: of the signal.
    """

    def __init__(self, number: int):
        super().__init__(number)
        self.number = number


@contextmanager
def ends_in_a_sentence() -> Iterator[None]:
    """Turn what ends a verb into a sentence on stderr and an exit status."""
    try:
        with _signals():
            yield
    except PrefoptError as error:
        _end(REFUSED, str(error), error)
    except KeyboardInterrupt as error:
        number = error.number if isinstance(error, Ended) else signal.SIGINT
        _end(128 + number, SIGNALS[signal.Signals(number)], error)
    except SystemExit as error:
        # An exit that a user's function asked for would pass for the end of what was to be done.
        where = traceback.extract_tb(error.__traceback__)[-1]
        if Path(where.filename).is_relative_to(Path(__file__).parent):
            raise
        place = f"{where.filename}:{where.lineno}"
        _end(REFUSED, f"{place} called sys.exit({error.code!r}); raise an error instead", error)
    except Exception as error:
        if sentence := system_sentence(error):
            _end(REFUSED, sentence, error)
        trace = "".join(traceback.format_exception(error))
        _end(FAILED, f"{trace}this is a fault of prefopt's: please report it, with the lines above", error)


def _end(status: int, sentence: str, error: BaseException) -> NoReturn:
    """Say it, with the notes on what was kept, and leave."""
    head = ("", "") if isinstance(error, KeyboardInterrupt) else ("error ", "bold red")
    # The last note is of whoever knows most: a study rather than one of its runs. A traceback has them all.
    notes = [] if status == FAILED else getattr(error, "__notes__", [])[-1:]
    with suppress(OSError):  # the terminal may be gone
        consoles.err.print(Text.assemble(head, sentence), soft_wrap=True)
        for note in notes:
            consoles.err.print(note, soft_wrap=True)
    sys.exit(status)


@contextmanager
def _signals() -> Iterator[None]:
    """Have SIGTERM and SIGHUP raise `Ended`; a signal that is ignored, as by nohup, or handled otherwise is left alone."""
    before = {}
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) is signal.SIG_DFL:
                before[number] = signal.signal(number, _raise)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _raise(number: int, frame: FrameType | None) -> NoReturn:
    raise Ended(number)
