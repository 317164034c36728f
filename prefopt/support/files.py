"""Files that are there whole or not at all, and folders that one process works in at a time."""

import contextlib
import errno
import glob
import io
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path

from filelock import BaseFileLock, FileLock, SoftFileLock, Timeout

from prefopt.support.errors import PrefoptError, nearest
from prefopt.support.system_errors import naming

LOCK = ".lock"
"""The file that a process holds while it works in a folder."""

SOFT_LOCK = ".lock-holder"
"""The same where the file system has no locks: the file itself is the lock, and says who holds it."""

LOCKS = (LOCK, SOFT_LOCK)

STAGING = ".writing"
"""How a hidden file ends that is not complete yet."""

NO_LOCKS = {errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL}
"""What file systems answer that have no locks: Lustre mounted without flock, NFS without its lock daemon, FUSE."""


def write_whole(path: Path, content: str | bytes) -> None:
    """Put text or bytes under this name in one step, so that nobody ever reads a part of it.

    Raises:
        OSError: it cannot be written; what was there before is untouched.
    """
    with replacing(path) as staging:
        # Half of a surrogate pair becomes its escape, which in JSON means the same.
        staging.write_bytes(content.encode("utf-8", "backslashreplace") if isinstance(content, str) else content)


def append_whole(path: Path, file: io.FileIO, content: bytes) -> None:
    """Add bytes to a file that is open for appending without a buffer: all of them, or none.

    Raises:
        OSError: they cannot be written, with the path; what was there before is untouched.
    """
    before = os.fstat(file.fileno()).st_size
    try:
        with naming(path):
            rest = memoryview(content)
            while rest:  # a disk that is nearly full takes a part first
                rest = rest[file.write(rest) :]
    except OSError:
        with contextlib.suppress(OSError):
            file.truncate(before)
        raise


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A name to write a file under, which takes the place of `path` once it is complete; after an error it is removed.

    The name is of this process alone: two that write the same file each write a whole one, and the later one stays.
    """
    staging = path.with_name(f".{path.name}.{uuid.uuid4().hex}{STAGING}")
    try:
        with naming(path):
            yield staging
        os.replace(staging, path)
    except BaseException:
        with contextlib.suppress(OSError):
            staging.unlink()
        raise


@contextlib.contextmanager
def replacing_folder(path: Path) -> Iterator[Path]:
    """A name to write a folder under, which takes the place of `path` once it is complete; after an error it is removed.

    What an earlier process left under that name when it was killed is removed, too: only one process may write a folder.
    """
    staging = path.with_name(f".{path.name}{STAGING}")
    shutil.rmtree(staging, ignore_errors=True)
    try:
        with naming(path):
            yield staging
        if path.is_dir():
            shutil.rmtree(path)
        staging.rename(path)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise


def unused(path: Path) -> Path:
    """`path`, or the first of path-2, path-3, … that is not there."""
    number, candidate = 1, path
    while candidate.exists():
        number += 1
        candidate = path.with_name(f"{path.stem}-{number}{path.suffix}")
    return candidate


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Work in a folder as the only process; it is created if need be, and removed again if nothing was put into it.

    The lock goes with the process that holds it, however that ends. Where the file system has no such locks (some network
    mounts), a file that names its process and host takes their place; one whose process is gone from this host is taken over.

    Raises:
        PrefoptError: another process works there.
    """
    new = [place for place in (folder, *folder.parents) if not place.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    lock = _acquired(folder)
    try:
        yield
    finally:
        lock.release()
        if new and is_empty(folder):
            with contextlib.suppress(OSError):  # a folder above it that others have put something into stays
                for name in LOCKS:
                    (folder / name).unlink(missing_ok=True)
                for place in new:
                    place.rmdir()


def is_locked(folder: Path) -> bool:
    """Whether a process works in a folder, as far as its lock can be tried; nothing is created."""
    locks: dict[str, type[BaseFileLock]] = {LOCK: FileLock, SOFT_LOCK: SoftFileLock}
    for name, kind in locks.items():
        if (folder / name).exists():
            try:
                with kind(folder / name, timeout=0):
                    pass
            except Timeout:
                return True
            except OSError:  # somebody else's, or of a file system without locks
                continue
    return False


def _acquired(folder: Path) -> BaseFileLock:
    """The lock of a folder, held.

    Raises:
        PrefoptError: another process holds it.
    """
    busy = f"{folder} is being worked on by another process"
    try:
        lock: BaseFileLock = FileLock(folder / LOCK, timeout=0, fallback_to_soft=False)
        lock.acquire()
    except Timeout:
        raise PrefoptError(f"{busy}: wait for it, stop it, or name another folder") from None
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        # Not under the name of the other kind, whose empty file would be taken for a lock that is held for ever.
        lock = SoftFileLock(folder / SOFT_LOCK, timeout=0)
        try:
            lock.acquire()
        except Timeout:
            raise PrefoptError(
                f"{busy}{_holder(folder / SOFT_LOCK)}: wait for it, stop it, or name another folder; if it is gone, remove "
                f"{folder / SOFT_LOCK}"
            ) from None
    return lock


def _holder(file: Path) -> str:
    """Who holds a lock that is a file, as far as the file says so."""
    try:
        lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    return f", {lines[0]} on {lines[1]}" if len(lines) > 1 else ""


def refuse_full(folder: Path) -> None:
    """Refuse to write into a folder that holds something, or into what is none.

    Raises:
        PrefoptError: says to name another.
    """
    if folder.exists() and not (folder.is_dir() and is_empty(folder)):
        raise PrefoptError(f"{folder} is there already, and nothing is overwritten: name a folder that is new or empty")


def is_empty(folder: Path) -> bool:
    """Whether there is nothing in a folder, or no such folder; a lock is nothing, nor is a file that a kill left unfinished."""
    return not folder.exists() or all(file.name in LOCKS or _is_staging(file) for file in folder.iterdir())


def _is_staging(file: Path) -> bool:
    return file.name.startswith(".") and file.name.endswith(STAGING)


def files_like(data: str, folder: Path | None = None) -> list[Path]:
    """The files of a name or a pattern (`rows/*.jsonl`): in the folder, else in the current one.

    Raises:
        PrefoptError: there is none, with the nearest one; or it is a directory.
    """
    given = Path(data).expanduser()
    patterns = [folder / given, given] if folder else [given]
    for pattern in patterns:
        found = (
            [pattern] if pattern.is_file() else sorted(Path(name) for name in glob.glob(str(pattern), recursive=True))
        )
        if len(found) == 1 and found[0].is_dir():
            raise PrefoptError(f"{found[0]}: is a directory; name its files, e.g. {found[0]}/*{given.suffix}")
        if found:
            return [file for file in found if not file.is_dir()]
    known = [file.name for pattern in patterns if pattern.parent.is_dir() for file in pattern.parent.iterdir()]
    looked = " and ".join(str(Path(base or ".").resolve()) for base in ([folder, None] if folder else [None]))
    raise PrefoptError(f"{data}: no such file (looked from {looked}).{nearest(given.name, known)}")
