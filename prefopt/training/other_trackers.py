"""Trackers beside W&B: TensorBoard, MLflow, trackio and Comet. Whatever goes wrong in one ends it, and never the run.

A run that goes on is one run there, too, without holes and doubles. What there is to be sent again is in metrics.jsonl, and what a
tracker has already is asked of it; TensorBoard is told that all that follows replaces what it has, and Comet's archive is written
anew. They are called directly, and not through accelerate 1.15: its tracker of MLflow lets MLFLOW_RUN_ID in the environment, which
is the same for all runs of a study, decide which run is gone on with, and that of TensorBoard writes the settings as a further run.
"""

import importlib.util
import logging
import math
import re
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any, Protocol

import yaml

from prefopt import recipe
from prefopt.recipe.flat import flat
from prefopt.support.errors import PrefoptError
from prefopt.support.json_values import Number
from prefopt.training.trackers import PATIENCE, in_short, log, within

PACKAGES = {"tensorboard": "tensorboard", "mlflow": "mlflow", "trackio": "trackio", "comet": "comet_ml"}
"""The package that each section of `track` needs; the extra of prefopt is named like the section."""

STARTING = 4
"""Times as long as for an answer is waited for a start: the first one imports the package and makes MLflow's database."""

LONGEST = 500
"""Characters of a parameter in MLflow."""


class Open(Protocol):
    """A run that is open at a tracker."""

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Send finite numbers."""

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Close it; `summary` says whether the run has finished."""


@dataclass(frozen=True)
class About:
    """What a tracker is told of a run.

    Attributes:
        folder: the run folder.
        name: of the run.
        config: the resolved recipe.
        run_id: at the tracker, of an earlier process; empty where there was none.
        keep: is told the id that a resume goes on with.
    """

    folder: Path
    name: str
    config: Mapping[str, Any]
    run_id: str
    keep: Callable[[str], None]


def refuse_missing(track: recipe.Track) -> None:
    """Refuse trackers that are not installed, before a model is loaded.

    Raises:
        PrefoptError: says how to install it.
    """
    for section, package in PACKAGES.items():
        if getattr(track, section) is not None and importlib.util.find_spec(package) is None:
            raise PrefoptError(
                f"track.{section} needs the package {package}: pip install 'prefopt-research[{section}]', or leave it out; "
                "metrics.jsonl is always written"
            )


class OtherTracker:
    """One of these trackers, as `Tracker` has it.

    Args:
        title: its name, for warnings.
        begin: opens the run.
        history: lines of metrics.jsonl that are there already.
    """

    def __init__(self, title: str, begin: Callable[[], Open], history: Iterable[Mapping[str, Any]] = ()):
        self.title = title
        self.run: Open | None = None
        self.run = self._within(begin, STARTING)
        for line in history:
            self.log(line["step"], {name: value for name, value in line.items() if name != "step"})

    def log(self, step: int, metrics: Mapping[str, Number]) -> None:
        """Send one step's finite numbers."""
        if (run := self.run) is not None:
            finite = {n: float(v) for n, v in metrics.items() if isinstance(v, int | float) and math.isfinite(v)}
            self._within(lambda: run.log(step, finite))

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Close the run."""
        if (run := self.run) is not None:
            self._within(lambda: run.finish(summary))
            self.run = None

    def _within(self, action: Callable[[], Any], times: int = 1) -> Any:
        """What the action returns; in a thread of its own, in which a tracker finds no run of the user's that it would end."""
        answer: list[Any] = [None]

        def act() -> None:
            answer[0] = action()

        try:
            within(times * PATIENCE, act)
        except Exception as error:
            log.warning("%s: %s. The run goes on; metrics.jsonl has everything.", self.title, in_short(error))
            self.run = None
        return answer[0]


class TensorBoard:
    """Event files in the run folder; `tensorboard --logdir runs` shows all runs.

    All steps are written once more after a resume, and the first event says that they replace those of earlier files.
    """

    def __init__(self, settings: recipe.TensorBoard, about: About):
        from torch.utils.tensorboard import SummaryWriter

        folder = about.folder / "tensorboard"
        self.writer = SummaryWriter(str(folder), purge_step=0 if folder.is_dir() else None)
        self.writer.add_text("recipe", f"```yaml\n{yaml.safe_dump(dict(about.config), sort_keys=False)}```", 0)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Write one step."""
        for name, value in metrics.items():
            self.writer.add_scalar(name, value, step)
        self.writer.flush()

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Close the file."""
        self.writer.close()


class MLflow:
    """A run of an experiment, by MLflow's client: a run that the user has open stays as it is."""

    def __init__(self, settings: recipe.MLflow, about: About):
        from mlflow import MlflowClient

        self.client, self.known = MlflowClient(tracking_uri=settings.uri), dict[str, set[int]]()
        self.new = not about.run_id
        if about.run_id:
            self.run_id = about.run_id
            self.client.update_run(self.run_id, status="RUNNING")
            return
        run = self.client.create_run(self._experiment(settings.experiment), run_name=about.name)
        self.run_id = run.info.run_id
        about.keep(self.run_id)
        for name, value in flat(about.config).items():
            self.client.log_param(self.run_id, _plain(name), str(value)[:LONGEST])

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Send one step, but for what an earlier process has sent."""
        for name, value in metrics.items():
            plain = _plain(name)
            if plain not in self.known:
                there = [] if self.new else self.client.get_metric_history(self.run_id, plain)
                self.known[plain] = {point.step for point in there}
            if step not in self.known[plain]:
                self.client.log_metric(self.run_id, plain, value, step=step)

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Say how it ended."""
        self.client.set_terminated(self.run_id, "FINISHED" if summary.get("finished") else "FAILED")

    def _experiment(self, name: str) -> str:
        from mlflow.exceptions import MlflowException

        found = self.client.get_experiment_by_name(name)
        if found is None:
            try:
                return str(self.client.create_experiment(name))
            except MlflowException:  # another run has just made it
                found = self.client.get_experiment_by_name(name)
                if found is None:
                    raise
        return str(found.experiment_id)


def _plain(name: str) -> str:
    """The name with what MLflow's names may have."""
    return re.sub(r"[^\w\-. /]", "_", name)


class Trackio:
    """A run of a trackio project, on this machine or in a Space. Its id is its name, which ends in letters of its own."""

    def __init__(self, settings: recipe.Trackio, about: About):
        name = about.run_id or f"{about.name}-{uuid.uuid4().hex[:6]}"
        with redirect_stdout(StringIO()):  # it prints
            import trackio

            self.run = trackio.init(
                project=settings.project,
                name=name,
                group=settings.group,
                space_id=settings.space,
                config=dict(about.config),
                resume="allow" if about.run_id else "never",
                embed=False,
                auto_log_gpu=False,
                auto_log_cpu=False,
            )
        about.keep(name)
        self.known = _sent_to_trackio(settings.project, name) if about.run_id and settings.space is None else set()
        # Of a Space only the last step is known (`_next_step`, trackio 0.43).
        self.first = self.run._next_step if about.run_id and settings.space is not None else 0

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Send one step, but for what an earlier process has sent."""
        new = {name: value for name, value in metrics.items() if (step, name) not in self.known}
        if new and step >= self.first:
            self.run.log(new, step=step)

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Wait until all is sent."""
        with redirect_stdout(StringIO()):
            self.run.finish()


def _sent_to_trackio(project: str, name: str) -> set[tuple[int, str]]:
    """Step and name of every number of a run on this machine (trackio 0.43 has no public way to ask)."""
    from trackio.sqlite_storage import SQLiteStorage

    return {(line["step"], key) for line in SQLiteStorage.get_logs(project, name) for key in line}


class Comet:
    """An archive in the run folder, which `comet upload` sends to Comet: all of the run, also after a resume.

    A second experiment in one process ends the first, whoever opened it (comet_ml 3.58), so beside the user's own there is none.
    """

    def __init__(self, settings: recipe.Comet, about: About):
        import comet_ml

        mine = comet_ml.get_running_experiment()
        if mine is not None and not mine.ended:
            raise RuntimeError("this process has an experiment of Comet open, which another one would end")
        key = about.run_id or uuid.uuid4().hex
        unasked = ("log_code", "log_graph", "parse_args", "log_env_details", "log_git_metadata", "log_git_patch")
        automatic = ("auto_param_logging", "auto_metric_logging", "auto_output_logging")
        with _quiet("comet_ml"):
            self.run = comet_ml.OfflineExperiment(
                project_name=settings.project,
                workspace=settings.workspace,
                offline_directory=str(about.folder / "comet"),
                experiment_key=key,
                display_summary_level=0,
                **dict.fromkeys((*unasked, *automatic), False),
            )
            self.run.set_name(about.name)
            self.run.log_parameters(flat(about.config))
        about.keep(key)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Write one step."""
        self.run.log_metrics(dict(metrics), step=step)

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Write the archive; one that an earlier process wrote is replaced."""
        with _quiet("comet_ml"):
            self.run.end()


@contextmanager
def _quiet(logger: str) -> Iterator[None]:
    """Without what a package says that is no error."""
    level = logging.getLogger(logger).level
    logging.getLogger(logger).setLevel(logging.ERROR)
    try:
        yield
    finally:
        logging.getLogger(logger).setLevel(level)


OPENED: Mapping[str, Callable[[Any, About], Open]] = {
    "tensorboard": TensorBoard,
    "mlflow": MLflow,
    "trackio": Trackio,
    "comet": Comet,
}
"""What opens a run, by the section of `track`."""


def opened(
    track: recipe.Track,
    about: Callable[[str], About],
    history: Callable[[], Iterable[Mapping[str, Any]]],
) -> Iterator[OtherTracker]:
    """The trackers that a recipe asks for, W&B apart.

    Args:
        track: of the recipe.
        about: what the tracker of a section is told.
        history: lines of metrics.jsonl that are there already.
    """
    for section, make in OPENED.items():
        settings = getattr(track, section)
        if settings is not None:
            yield _opened(make, settings, about(section), history())


def _opened(
    make: Callable[[Any, About], Open], settings: Any, about: About, history: Iterable[Mapping[str, Any]]
) -> OtherTracker:
    return OtherTracker(type(settings).__name__, lambda: make(settings, about), history)
