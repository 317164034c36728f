"""What the runs of a study share: the results of pure functions, made once and kept in memory while `sharing` lasts."""

from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")

MOST = {"examples": 16, "tokens": 32, "models": 4, "evaluations": 64}
"""How many results of each kind are kept; the one that was longest of no use goes first."""

_kept: dict[str, OrderedDict[Hashable, Any]] | None = None


@contextmanager
def sharing() -> Iterator[None]:
    """While this lasts, `shared` remembers. Outside of it every run makes everything itself."""
    global _kept
    before, _kept = _kept, {} if _kept is None else _kept
    try:
        yield
    finally:
        _kept = before


def shared(kind: str, key: Hashable, make: Callable[[], T], copy: Callable[[T], T] | None = None) -> T:
    """`make()`, or what it returned before for this key, which nobody may change unless each gets a copy.

    Args:
        kind: of result, one of `MOST`.
        key: everything that the result depends on; rows go by `DiskRows.identity`.
        make: a pure function.
        copy: makes what is handed out from what is kept.
    """
    if _kept is None:
        return make()
    kept = _kept.setdefault(kind, OrderedDict())
    if key not in kept:
        kept[key] = make()
    kept.move_to_end(key)
    while len(kept) > MOST[kind]:
        kept.popitem(last=False)
    value: T = kept[key]
    return value if copy is None else copy(value)


def stamp(name: str) -> Hashable:
    """What tells a file, or a folder of files, from what it was before: sizes and times. Of anything else, its name."""
    path = Path(name).expanduser()
    files = sorted(path.iterdir()) if path.is_dir() else [path] if path.is_file() else []
    return (str(path.absolute()), *((file.name, file.stat().st_mtime_ns, file.stat().st_size) for file in files))
