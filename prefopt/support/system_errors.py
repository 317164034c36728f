"""What the operating system refuses, as a sentence: which file or folder, why, and what to do."""

import errno
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

REMEDIES = {
    errno.ENOSPC: ("the disk is full", "make room there, or name a folder on another disk"),
    errno.EDQUOT: ("your quota there is used up", "make room there, or name a folder on another disk"),
    errno.EFBIG: ("a file may not grow that large there", "raise the limit (ulimit -f), or name a folder elsewhere"),
    errno.EROFS: ("the file system is read-only", "name a folder that can be written to"),
    errno.EACCES: ("permission is denied", "change the permissions (chmod), or name another"),
    errno.EPERM: ("the operating system does not permit it", "change its owner or attributes, or name another"),
    errno.ENOTDIR: ("a part of this path is a file and no folder", "name another"),
    errno.EEXIST: ("it is there already, and is no folder", "move it away, or name another"),
    errno.EISDIR: ("it is a folder, and a file is wanted", "name a file"),
    errno.ENOTEMPTY: ("the folder is not empty", "look what else is in it"),
    errno.ENOENT: ("there is no such file or folder", "is the path right, and is the disk there?"),
    errno.ELOOP: ("links lead back to themselves", "name the folder itself"),
    errno.ENAMETOOLONG: ("the name is too long for the file system (255 bytes)", "choose a shorter one"),
    errno.EILSEQ: ("the file system cannot hold this name", "choose one of plain letters"),
    errno.EMFILE: ("this process has too many files open", "raise the limit (ulimit -n), or use fewer processes"),
    errno.ENFILE: ("this machine has too many files open", "close other programs, or raise fs.file-max"),
    errno.ENOMEM: ("the machine is out of memory", "close other programs, or use fewer processes"),
    errno.EAGAIN: (
        "the machine allows no more processes or locks",
        "use fewer processes, or raise the limit (ulimit -u)",
    ),
    errno.ENOLCK: ("the file system gives no locks", "name a folder on a local disk"),
    errno.EIO: (
        "the disk or the network file system reports a fault",
        "check it and the room on it, or name a folder elsewhere",
    ),
    errno.ESTALE: ("the network file system has lost this file", "mount it again, or name a folder elsewhere"),
    errno.ENODEV: ("the disk is gone", "mount it again, or name a folder elsewhere"),
    errno.ETIMEDOUT: ("there was no answer in time", "check the network or the network file system"),
}
"""For an error's number: what it means, and what to do."""

LITTLE_ROOM = 2**16
"""Bytes of a disk on which a write that failed must have failed for want of room."""

LIBRARIES = ("safetensors", "safetensors_rust", "sqlite3", "pyarrow", "datasets", "torch")
"""Their errors, and plain RuntimeErrors, may stand for one of the operating system."""

_OF_SQLITE = {
    "database or disk is full": errno.ENOSPC,
    "readonly database": errno.EROFS,
    "disk i/o error": errno.EIO,
}
_OF_TORCH = re.compile(r"PytorchStreamWriter|inline_container|unexpected pos \d+|file write failed")
"""How torch says that a file could not be written; it gives no reason."""


def system_sentence(error: BaseException) -> str:
    """A sentence on an error of the operating system; empty for an error of another kind.

    Libraries in other languages raise errors of their own for a full disk; those whose message has the words or the number of the
    operating system count, too.

    Args:
        error: anything that was raised.
    """
    number, place = _number(error), _place(error)
    if isinstance(error, ValueError) and "embedded null" in str(error):
        return "a name of a file or folder holds a NUL character: take it out"
    if number is None:
        return f"{place}{_first_line(error) or type(error).__name__}" if isinstance(error, OSError) else ""
    what, remedy = REMEDIES.get(number, (os.strerror(number).lower(), "is everything there as it should be?"))
    at = Path(str(getattr(error, "filename", None) or ""))
    if number in (errno.ENOENT, errno.EEXIST) and at.is_symlink() and not at.exists():
        what, remedy = f"it is a link to {at.readlink()}, which is not there", "mend the link, or name another"
    elif number == errno.ENOTDIR and (file := next((p for p in (at, *at.parents) if p.is_file()), None)):
        what = f"{file} is a file and no folder"
    return f"{place}{what}; {remedy}"


@contextmanager
def naming(place: str | Path) -> Iterator[None]:
    """Have errors of the operating system name this file or folder where they name none.

    A write that fails for want of room, for one, does not say where.

    Raises:
        OSError: the same error with the place; for an error of a library of another kind, one that says the same.
    """
    try:
        yield
    except OSError as error:
        if error.filename is None and error.errno is not None:
            error.filename = str(place)
        raise
    except Exception as error:
        number = _number(error)
        if number is None:
            raise
        if number == errno.EIO and _has_no_room(Path(place)):
            number = errno.ENOSPC
        raise OSError(number, os.strerror(number), str(place)) from error


def _has_no_room(place: Path) -> bool:
    """Whether the disk is full on which this is or would be; torch and SQLite do not say why they cannot write."""
    there = next(folder for folder in (place, *place.absolute().parents) if folder.exists())
    return shutil.disk_usage(there).free < LITTLE_ROOM


@contextmanager
def noting(note: Callable[[BaseException], str]) -> Iterator[None]:
    """Add a sentence to whatever ends the work early, an interrupt included: what was kept, and how to go on.

    Args:
        note: makes the sentence of what ended the work; empty where there is nothing to say.
    """
    try:
        yield
    except (Exception, KeyboardInterrupt) as error:
        if (text := note(error)) and text not in getattr(error, "__notes__", ()):
            error.add_note(text)
        raise


def _number(error: BaseException) -> int | None:
    """The number of the operating system's error, also of one that a library has put into words of its own."""
    if isinstance(error, OSError):
        return error.errno if error.errno in errno.errorcode else None
    if type(error) is not RuntimeError and type(error).__module__.split(".")[0] not in LIBRARIES:
        return None
    text = str(error)
    if _OF_TORCH.search(text):
        return errno.EIO
    if found := re.search(r"\b(?:os error|code:|Errno) (\d+)", text):
        return int(found[1]) if int(found[1]) in errno.errorcode else None
    words = {os.strerror(n).lower(): n for n in REMEDIES} | _OF_SQLITE
    return next((n for said, n in words.items() if said in text.lower()), None)


def _place(error: BaseException) -> str:
    files = [str(f) for f in (getattr(error, "filename", None), getattr(error, "filename2", None)) if f is not None]
    return f"{' → '.join(files)}: " if files else ""


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).strip().splitlines()), "")
