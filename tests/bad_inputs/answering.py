"""What `prefopt` answers: its entry point, in a process of its own."""

import hashlib
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from _forked import Forked

SECONDS = 60


@dataclass(frozen=True)
class Answer:
    """What came of a command.

    Attributes:
        status: of the exit; None where it did not end in time.
        out: what it printed on stdout.
        err: and on stderr.
        new: files and folders that were not there.
        changed: what was there and is different now, or gone.
    """

    status: int | None
    out: str
    err: str
    new: tuple[str, ...]
    changed: tuple[str, ...]

    @property
    def sentence(self) -> str:
        """The error, without what was printed before it; everything where there is no error."""
        found = list(re.finditer(r"^(error |prefopt( \w+)*: error: )", self.err, re.MULTILINE))
        return self.err[found[-1].start() :].strip() if found else f"{self.err}\n{self.out}".strip()


def answer(command: Sequence[str], folder: Path, environment: Mapping[str, str]) -> Answer:
    """Run `prefopt` in the world of a case.

    Args:
        command: the words after `prefopt`.
        folder: the world, where it works; what it prints goes beside.
        environment: variables.
    """
    before = _contents(folder)
    said = folder.with_name(f"{folder.name}.out"), folder.with_name(f"{folder.name}.err")
    process = Forked(command, folder, environment, said)
    status = process.wait(SECONDS)
    if status is None:
        process.kill()
        process.wait()
    out, err = (file.read_text(encoding="utf-8", errors="replace") for file in said)
    after = _contents(folder)
    new = tuple(name for name in after if name not in before)
    return Answer(status, out, err, new, tuple(name for name in before if after.get(name) != before[name]))


def _contents(folder: Path) -> dict[str, str]:
    """Every file, folder and link by its path in the folder, and what it holds."""
    return {str(path.relative_to(folder)): _content(path) for path in sorted(folder.rglob("*"))}


def _content(path: Path) -> str:
    if path.is_symlink():
        return f"link to {os.readlink(path)}"
    return hashlib.blake2b(path.read_bytes()).hexdigest() if path.is_file() else "folder"
