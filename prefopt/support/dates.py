"""One date for a run: chat templates that write today's date would write another one after midnight."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date, datetime, time

_fixed: date | None = None


def current_date() -> date:
    """The date that chat templates write now: the fixed one, else today's."""
    return _fixed or date.today()


@contextmanager
def fixed_date(day: date) -> Iterator[None]:
    """A context in which `strftime_now` of every chat template, which Llama 3.2's and gpt-oss's call, gives this date, at 00:00.

    transformers defines that function by `datetime.now()` of its module `chat_template_utils`, and lets nobody pass another one
    (5.23: callables among the arguments of `apply_chat_template` are replaced). So the name `datetime` of that module is another
    one meanwhile, for all threads of the process.
    """
    global _fixed
    from transformers.utils import chat_template_utils

    names = vars(chat_template_utils)
    before, clock = _fixed, names["datetime"]
    _fixed, names["datetime"] = day, _Clock(day)
    try:
        yield
    finally:
        _fixed, names["datetime"] = before, clock


class _Clock:
    """What chat templates need of `datetime`."""

    def __init__(self, day: date):
        self._now = datetime.combine(day, time())

    def now(self) -> datetime:
        """The fixed date, at 00:00."""
        return self._now
