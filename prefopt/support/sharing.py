"""Memoisation across the runs of a study: results of pure functions, kept in memory while `sharing` lasts."""

from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")

LIMITS = {"examples": 16, "tokens": 32, "models": 4, "evaluations": 64}
"""Most results of each kind; the least recently used is dropped first."""

_results: dict[str, OrderedDict[Hashable, Any]] | None = None


@contextmanager
def sharing() -> Iterator[None]:
    """A context in which `shared` keeps results; outside of it, `shared` always computes."""
    global _results
    before, _results = _results, {} if _results is None else _results
    try:
        yield
    finally:
        _results = before


def shared(kind: str, key: Hashable, make: Callable[[], T], copy: Callable[[T], T] | None = None) -> T:
    """`make()`, or what it returned before for this key. Callers must not change the result, unless `copy` is given.

    Args:
        kind: of result, one of `LIMITS`.
        key: everything that the result depends on, hashable; rows go by `DiskRows.identity`.
        make: a pure function.
        copy: applied to the stored result before it is returned.
    """
    if _results is None:
        return make()
    results = _results.setdefault(kind, OrderedDict())
    if key not in results:
        results[key] = make()
    results.move_to_end(key)
    while len(results) > LIMITS[kind]:
        results.popitem(last=False)
    value: T = results[key]
    return value if copy is None else copy(value)


def stamp(name: str) -> Hashable:
    """A key that changes when a file, or a file of a folder, changes: sizes and modification times. For other names, the name."""
    path = Path(name).expanduser()
    files = sorted(path.iterdir()) if path.is_dir() else [path] if path.is_file() else []
    return (str(path.absolute()), *((file.name, file.stat().st_mtime_ns, file.stat().st_size) for file in files))
