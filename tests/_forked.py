"""`prefopt` in a process of its own that is forked from one in which everything is imported.

A fresh interpreter takes seconds to import torch and transformers; a fork takes a few milliseconds. No process is used twice.
"""

import multiprocessing
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

PRELOADED = """pytest accelerate datasets jinja2 matplotlib.figure matplotlib.font_manager openai peft pyarrow.parquet
scipy.optimize transformers.models.auto.modeling_auto transformers.models.llama.modeling_llama
prefopt.cli.parser prefopt.runs.run prefopt.runs.dry_run prefopt.runs.inspecting prefopt.runs.label.labelling
prefopt.evaluation.judges.report prefopt.feedback.judges.server prefopt.objectives.listing prefopt.study.conclusion
prefopt.study.jobs prefopt.study.preview prefopt.study.report.page prefopt.study.run prefopt.support.caches"""
"""What a fork need not import; a name that there is not is passed over, and only costs time."""

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(PRELOADED.split())


class Forked:
    """A command that has begun, which `subprocess.Popen` would begin in a fresh interpreter.

    Args:
        command: the words after `prefopt`.
        folder: where it works.
        environment: variables beside those there are.
        said: the files of stdout and stderr; nowhere unless given.
        own_group: it leads a process group, as a terminal has it.
    """

    def __init__(
        self,
        command: Sequence[object],
        folder: Path,
        environment: Mapping[str, str] | None = None,
        said: tuple[Path, Path] = (Path(os.devnull), Path(os.devnull)),
        own_group: bool = False,
    ):
        words, variables = [str(word) for word in command], {**os.environ, **(environment or {})}
        self._process = CONTEXT.Process(target=_prefopt, args=(words, folder, variables, said, own_group))
        self._process.start()
        assert self._process.pid is not None
        self.pid = self._process.pid

    def poll(self) -> int | None:
        """The exit status, −n where signal n ended it; None while it goes on."""
        return self._process.exitcode

    def wait(self, seconds: float | None = None) -> int | None:
        """The exit status at the end, or None if that takes longer."""
        self._process.join(seconds)
        return self._process.exitcode

    def kill(self) -> None:
        """SIGKILL."""
        self._process.kill()


def _prefopt(command: list[str], folder: Path, variables: dict[str, str], said: tuple[Path, ...], group: bool) -> None:
    """In the process that answers."""
    if group:
        os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # tests in the background ignore it
    os.environ.clear()
    os.environ.update(variables)
    os.chdir(folder)
    for number, file in enumerate(said, 1):
        os.dup2(os.open(file, os.O_CREAT | os.O_WRONLY | os.O_TRUNC), number)
    sys.dont_write_bytecode = True  # Python's, beside a user's file
    sys.argv = ["prefopt", *command]
    from prefopt.cli import main

    main(command)


def typed(line: str, folder: Path, environment: Mapping[str, str]) -> str:
    """What a command of a page prints: `prefopt` in a fork, anything else in a shell."""
    if line.startswith("prefopt "):
        said = folder.with_name(f"{folder.name}.out"), folder.with_name(f"{folder.name}.err")
        status = Forked(shlex.split(line)[1:], folder, environment, said).wait()
        out, err = (file.read_text() for file in said)
    else:
        done = subprocess.run(["bash", "-c", line], cwd=folder, env=environment, capture_output=True, text=True)
        status, out, err = done.returncode, done.stdout, done.stderr
    assert status == 0, (line, out[-1500:], err[-1500:])
    return out
