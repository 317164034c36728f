"""Where the numbers of a run go: metrics.jsonl always, W&B and other trackers when asked. No tracker ever stops a run."""

import json
import logging
import math
import netrc
import os
import re
import shutil
import ssl
import threading
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from http.client import HTTPException
from pathlib import Path
from typing import Any, Protocol
from urllib.error import HTTPError
from urllib.parse import urlparse
from urllib.request import urlopen

from prefopt import recipe
from prefopt.support.files import append_whole, unused, write_whole
from prefopt.support.json_values import Number, json_values
from prefopt.support.profile import timed

log = logging.getLogger(__name__)


PATIENCE = 30.0
"""Seconds that W&B gets to answer, when it starts and again when it finishes; other trackers each time that they are called."""


class Place(Protocol):
    """Where numbers go. Nothing but metrics.jsonl may raise."""

    def log(self, step: int, metrics: Mapping[str, Number]) -> None:
        """Send one step."""

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Close it."""


class Jsonl:
    """One line for each step: `step`, and its metrics; a NaN is null."""

    def __init__(self, path: Path):
        self.path, self.file = path, path.open("ab", buffering=0)

    def log(self, step: int, metrics: Mapping[str, Number]) -> None:
        """Append a line; a killed process loses none that were written.

        Raises:
            OSError: it cannot be written; then no part of it is there.
        """
        append_whole(self.path, self.file, (json.dumps({"step": step, **json_values(metrics)}) + "\n").encode())

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Close the file."""
        self.file.close()


class WandbRun:
    """A run at Weights & Biases, offline without a login or without a connection. Its troubles end it, not the run.

    With the id of an earlier process, its run there goes on: what it holds of the history stays, what it misses is sent. Offline
    nothing is known of what it holds, so the whole history is sent once more, and the last offline folder alone is the whole run.

    Args:
        settings: the recipe's `track.wandb`.
        folder: the run folder; W&B's own files go below it.
        name: of the run.
        config: the resolved recipe.
        run_id: of the run in W&B, which goes on if it is there. The environment has no say in it, but for W&B's sweeps.
        history: lines of metrics.jsonl that are there already.
    """

    def __init__(
        self,
        settings: recipe.Wandb,
        folder: Path,
        name: str,
        config: Mapping[str, Any],
        run_id: str | None = None,
        history: Iterable[Mapping[str, Any]] = (),
    ):
        self.settings, self.folder, self.name, self.config = settings, folder, name, dict(config)
        self.run_id, self.first_step = run_id or new_wandb_id(), 0
        self.run: Any = None
        mode = wandb_mode(settings.mode)
        if mode == "offline" and settings.mode == "online":
            log.warning("W&B: no login was found, so this run is logged offline. `wandb sync` uploads it.")
        elif mode == "online" and (reason := _unreachable()):
            log.warning("W&B: %s. This run is logged offline; `wandb sync` uploads it.", reason)
            mode = "offline"
        try:
            try:
                self.run = self._started(mode)
            except Exception as error:
                if mode != "online":
                    raise
                # W&B's service holds the id of a start that failed as in use, for as long as it lives.
                refused, self.run_id = self.run_id, new_wandb_id()
                sync = f"`wandb sync --id {refused}`"
                log.warning("W&B: %s. This run is logged offline; %s uploads it.", in_short(error), sync)
                self.run = self._started("offline")
            self.first_step = self.run.step
        except Exception as error:
            self._give_up(error)
        for line in history:
            self.log(line["step"], {name: value for name, value in line.items() if name != "step"})

    def log(self, step: int, metrics: Mapping[str, Number]) -> None:
        """Send one step, unless an earlier process has sent it."""
        if self.run is not None and step >= self.first_step:
            try:
                self.run.log(json_values(metrics), step=step)
            except Exception as error:
                self._give_up(error)

    def attach(
        self, tables: Mapping[str, Sequence[Mapping[str, Any]]], figures: Mapping[str, str], files: Sequence[Path]
    ) -> None:
        """Send tables, a mapping for each row; figures, as SVG; and files as one artifact that is named after the run."""
        if self.run is None:
            return
        try:
            import wandb

            for name, rows in tables.items():
                columns: list[str | int] = list(dict.fromkeys(column for row in rows for column in row))
                data = [[row.get(str(column)) for column in columns] for row in rows]
                self.run.log({name: wandb.Table(columns=columns, data=data)})
            for name, drawing in figures.items():
                self.run.log({f"figures/{name}": wandb.Html(drawing, inject=False)})
            artifact = wandb.Artifact(
                re.sub(r"[^\w.-]", "-", f"{self.settings.group or self.name}-report"), type="report"
            )
            for file in files:
                artifact.add_file(str(file))
            self.run.log_artifact(artifact)
        except Exception as error:
            self._give_up(error)

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Send the summary and close."""
        run, self.run = self.run, None
        if run is not None:
            try:
                run.summary.update(dict(summary))
                within(PATIENCE, lambda: run.finish(exit_code=0 if summary.get("finished") else 1))
            except TimeoutError as error:
                self._give_up(TimeoutError(f"{error}; `wandb sync` uploads the rest"))
            except Exception as error:
                self._give_up(error)

    def _started(self, mode: str) -> Any:
        import wandb

        with _unset("WANDB_RESUME_FROM", "WANDB_FORK_FROM"):  # which W&B refuses beside an id that goes on
            return wandb.init(
                project=self.settings.project,
                entity=self.settings.entity,
                group=self.settings.group,
                tags=list(self.settings.tags),
                name=self.name,
                id=self.run_id,
                resume="allow",
                config=self.config,
                dir=str(self.folder),
                mode=mode,  # type: ignore[arg-type]
                reinit="create_new",  # a run that the user has open is not ours to finish
                settings=wandb.Settings(
                    silent=True,
                    console="off",
                    init_timeout=PATIENCE,
                    login_timeout=PATIENCE,
                    sagemaker_disable=True,  # there a job's name would be the id of every run in it
                ),
            )

    def _give_up(self, error: Exception) -> None:
        log.warning("W&B: %s. The run goes on; metrics.jsonl has everything.", in_short(error))
        self.run = None


@contextmanager
def _unset(*names: str) -> Iterator[None]:
    """Take variables out of the environment for a while."""
    values = {name: os.environ.pop(name) for name in names if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(values)


def new_wandb_id() -> str:
    """An id for a run in W&B that no other has."""
    return uuid.uuid4().hex[:16]


def in_short(error: Exception) -> str:
    """The class of an exception, and the first line of what it says."""
    first = str(error).strip().partition("\n")[0]
    return f"{type(error).__name__}: {first}".rstrip(".: ")


def within(seconds: float, action: Callable[[], Any]) -> None:
    """Wait for an action no longer than this; what it raises is raised here.

    Raises:
        TimeoutError: it takes longer; it goes on in a thread that does not keep the process alive.
    """
    raised: list[Exception] = []

    def act() -> None:
        try:
            action()
        except Exception as error:
            raised.append(error)

    thread = threading.Thread(target=act, daemon=True)
    thread.start()
    thread.join(seconds)
    if thread.is_alive():
        raise TimeoutError(f"no answer within {seconds:g} s")
    if raised:
        raise raised[0]


def wandb_mode(asked: str) -> str:
    """Online only where a login is present, so that nothing ever prompts; `auto` also heeds WANDB_MODE."""
    if asked == "auto":
        asked = os.environ.get("WANDB_MODE", "online")
    if asked in ("offline", "dryrun", "disabled"):
        return asked
    return "online" if _has_login() else "offline"


def _address() -> str:
    """Of the service."""
    return os.environ.get("WANDB_BASE_URL") or "https://api.wandb.ai"


def _unreachable() -> str:
    """Why nobody answers at the service's address, through the proxies of the environment; empty where somebody does."""
    try:
        with urlopen(_address(), timeout=PATIENCE):
            return ""
    except HTTPError:
        return ""  # an answer
    except (OSError, HTTPException, ValueError) as error:
        cause = getattr(error, "reason", error)  # W&B may trust certificates that Python does not know
        return "" if isinstance(cause, ssl.SSLError) else f"{_address()} gives no answer ({cause})"


def _has_login() -> bool:
    """A key in the environment, or one for the service's host in ~/.netrc (or $NETRC)."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = urlparse(_address()).hostname or ""
    try:
        return netrc.netrc(os.environ.get("NETRC")).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False


class Tracker:
    """Every place at once; on processes other than the first, none."""

    def __init__(self, places: Sequence[Place]):
        self.places = places

    def log(self, step: int, metrics: Mapping[str, Number]) -> None:
        """Send one step's numbers everywhere."""
        with timed("tracking"):
            for place in self.places:
                place.log(step, metrics)

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Send the summary and close everything."""
        with timed("tracking"):
            for place in self.places:
                place.finish(summary)


def rewind(path: Path, step: int) -> None:
    """Take the lines after `step` out of a metrics file, for a resume writes them again; the old file is kept beside it."""
    if not path.exists():
        return
    text = path.read_text(encoding="utf-8", errors="replace")
    earlier = "".join(line + "\n" for line in text.splitlines() if _step(line) <= step)
    if earlier != text:
        shutil.copy(path, unused(path.with_name("metrics-before-resume.jsonl")))
        write_whole(path, earlier)


def has_line(path: Path, step: int, prefix: str) -> bool:
    """Whether a metrics file has a line of this step with a metric whose name begins like that."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return any(_step(line) == step and any(name.startswith(prefix) for name in json.loads(line)) for line in lines)


def _step(line: str) -> float:
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return math.inf  # cut short by the kill
