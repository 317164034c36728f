"""One job, in whatever process this is called: how it is run, where its log and its error go."""

import contextlib
import gc
import io
import traceback
from collections.abc import Callable, Iterator

from rich.console import Console

from prefopt.runs.folder import RunFolder
from prefopt.runs.manifest import date_of
from prefopt.runs.pausing import Paused
from prefopt.study.executors.executor import Outcome, log_file, record_failure
from prefopt.study.jobs import Job, is_finished
from prefopt.study.places import note_start
from prefopt.study.stopping import NOT_STARTED, PAUSED, PREEMPTED, asked_to_stop
from prefopt.support.allocator import keep_freed_memory
from prefopt.support.dates import fixed_date
from prefopt.support.files import unused
from prefopt.support.sharing import sharing_files
from prefopt.support.system_errors import naming, system_sentence
from prefopt.support.terminal import Terminal


def set_up_process() -> None:
    """Settings for a process that does nothing but run jobs; call it once before the first one."""
    from prefopt.support.logs import quiet_libraries

    quiet_libraries()
    keep_freed_memory()


def perform(job: Job, preempted: Callable[[], bool] | None = None, within: str = "") -> Outcome:
    """Run a job to its end; what was begun in its folder is continued as far as possible.

    It raises nothing but KeyboardInterrupt and SystemExit: an error is written to error.txt in the job's folder, beside the
    partial work, and its first line is in the outcome. Where the study is asked to stop, the job is not begun, or
    saves a checkpoint after the step that it is at and ends.

    Args:
        job: which.
        preempted: whether this process should make room: then, too, the job saves a checkpoint and ends.
        within: what this process is on a cluster, for `--status`: "SLURM job 4711".
    """
    folder = job.study_folder
    if asked_to_stop(folder):
        return Outcome(job, NOT_STARTED)
    try:
        if missing := [folder for folder in job.after if not is_finished(folder)]:
            raise RuntimeError(f"{missing[0]} is not finished, and this run reads from it")
        _prepare_folder(job)
        day = date_of(RunFolder(folder).manifest())
        note_start(folder, job.name, job.seed, within)
        with _log(job) as console, fixed_date(day), sharing_files(folder / "shared"):
            job.run(console, pause=lambda: asked_to_stop(folder) or (preempted is not None and preempted()))
        return Outcome(job)
    except Paused:
        return Outcome(job, PAUSED if asked_to_stop(folder) else PREEMPTED)
    except Exception as error:
        why = system_sentence(error) or f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}"
        return record_failure(job, why, traceback.format_exc())
    finally:
        gc.collect()  # models and optimisers refer to each other


def _prepare_folder(job: Job) -> None:
    """A folder that can be continued keeps its earlier error under another name; one that cannot is moved to aside/."""
    if not job.folder.exists():
        return
    files = RunFolder(job.folder)
    if files.begun:
        if files.failed:
            files.error_file.rename(unused(job.folder / "error-before.txt"))
        return
    aside = job.study_folder / "aside" / f"{job.name}-seed-{job.seed}"
    aside.parent.mkdir(exist_ok=True)
    job.folder.rename(unused(aside))


@contextlib.contextmanager
def _log(job: Job) -> Iterator[Console]:
    """What a run of its own would show in the terminal goes to logs/."""
    with _LogFile(log_file(job).open("ab"), encoding="utf-8") as text:
        yield Terminal(file=text, width=120)


class _LogFile(io.TextIOWrapper):
    """A file whose errors say which one it is."""

    def flush(self) -> None:
        with naming(self.name):
            super().flush()
