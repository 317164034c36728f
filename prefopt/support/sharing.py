"""Memoisation across the runs of a study: results of pure functions, in memory while `sharing` lasts, or in files of the study."""

from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

from filelock import FileLock

from prefopt.support.files import write_whole

T = TypeVar("T")

LIMITS = {"examples": 16, "tokens": 32, "models": 4, "evaluations": 64}
"""Most results of each kind; the least recently used is dropped first."""

_results: dict[str, OrderedDict[Hashable, Any]] | None = None
_folder: Path | None = None


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


@contextmanager
def sharing_files(folder: Path) -> Iterator[None]:
    """A context in which `shared_text` keeps results below a folder, for all processes and also for a study that is begun again."""
    global _folder
    before, _folder = _folder, folder
    try:
        yield
    finally:
        _folder = before


def files_folder() -> Path | None:
    """The folder of `sharing_files`; None outside of it."""
    return _folder


def shared_text(kind: str, key: str, make: Callable[[], str], whole: Callable[[str], bool]) -> str:
    """`make()`, or what it returned to any process of the study for this key; outside of `sharing_files` it is always computed.

    One process computes while others wait for it. The lock goes with the process that holds it, so that where one is killed the
    next computes; and on a file system without locks each computes for itself.

    Args:
        kind: of result: the name of a folder.
        key: a hash of everything that the result depends on, since other processes and later versions of prefopt may ask for it.
        make: a pure function.
        whole: whether a file's text is a result; where it is not, it is computed again.
    """
    if _folder is None:
        return make()
    file = _folder / kind / f"{key}.json"
    if (text := _read(file, whole)) is not None:
        return text
    with ExitStack() as locked:
        with suppress(OSError):  # no locks here, or a folder that cannot be written to
            file.parent.mkdir(parents=True, exist_ok=True)
            locked.enter_context(FileLock(file.with_name(f".{key}.lock"), fallback_to_soft=False))
        if (text := _read(file, whole)) is None:
            text = make()
            with suppress(OSError):  # a full disk: others compute it again
                write_whole(file, text)
    return text


def _read(file: Path, whole: Callable[[str], bool]) -> str | None:
    """The text of a file, if it is a result."""
    with suppress(OSError, UnicodeDecodeError):
        text = file.read_text(encoding="utf-8")
        return text if whole(text) else None
    return None


def stamp(name: str) -> Hashable:
    """A key that changes when a file, or a file of a folder, changes: sizes and modification times. For other names, the name."""
    path = Path(name).expanduser()
    files = sorted(path.iterdir()) if path.is_dir() else [path] if path.is_file() else []
    return (str(path.absolute()), *((file.name, file.stat().st_mtime_ns, file.stat().st_size) for file in files))
