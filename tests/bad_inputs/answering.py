"""What `prefopt` answers: its entry point, in a process of its own that is forked from one in which everything is imported.

A fresh interpreter takes seconds to import torch and transformers; a fork takes a few milliseconds. No process answers twice.
"""

import hashlib
import multiprocessing
import os
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

SECONDS = 60
PRELOADED = """pytest accelerate datasets jinja2 matplotlib.figure matplotlib.font_manager openai peft pyarrow.parquet
scipy.optimize transformers.models.auto.modeling_auto transformers.models.llama.modeling_llama
prefopt.cli.parser prefopt.runs.run prefopt.runs.dry_run prefopt.runs.inspecting prefopt.runs.label.labelling
prefopt.evaluation.judges.report prefopt.feedback.judges.server prefopt.objectives.listing prefopt.study.conclusion
prefopt.study.jobs prefopt.study.preview prefopt.study.report.page prefopt.study.run prefopt.support.caches"""
"""What a fork need not import; a name that there is not is passed over, and only costs time."""

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(PRELOADED.split())


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
    said = [folder.with_name(f"{folder.name}.{stream}") for stream in ("out", "err")]
    process = CONTEXT.Process(target=_prefopt, args=(list(command), folder, dict(environment), said))
    process.start()
    process.join(SECONDS)
    status = process.exitcode
    if status is None:
        process.kill()
        process.join()
    out, err = (file.read_text(encoding="utf-8", errors="replace") for file in said)
    after = _contents(folder)
    new = tuple(name for name in after if name not in before)
    return Answer(status, out, err, new, tuple(name for name in before if after.get(name) != before[name]))


def _prefopt(command: list[str], folder: Path, environment: dict[str, str], said: list[Path]) -> None:
    """In the process that answers."""
    os.environ.update(environment)
    os.chdir(folder)
    for number, file in enumerate(said, 1):
        os.dup2(os.open(file, os.O_CREAT | os.O_WRONLY | os.O_TRUNC), number)
    sys.dont_write_bytecode = True  # Python's, beside a user's file
    sys.argv = ["prefopt", *command]
    from prefopt.cli import main

    main(command)


def _contents(folder: Path) -> dict[str, str]:
    """Every file, folder and link by its path in the folder, and what it holds."""
    return {str(path.relative_to(folder)): _content(path) for path in sorted(folder.rglob("*"))}


def _content(path: Path) -> str:
    if path.is_symlink():
        return f"link to {os.readlink(path)}"
    return hashlib.blake2b(path.read_bytes()).hexdigest() if path.is_file() else "folder"
