"""Where the numbers of a run go: metrics.jsonl always, Weights & Biases when asked. No tracker ever stops a run."""

import json
import logging
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prefopt import recipe

log = logging.getLogger(__name__)

Number = float | int


def silence_telemetry() -> None:
    """Ask the libraries that phone home not to; whoever has set these already is not overruled."""
    for name, value in {
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "DO_NOT_TRACK": "1",
        "WANDB_ERROR_REPORTING": "false",
        "WANDB_SILENT": "true",
    }.items():
        os.environ.setdefault(name, value)


class Jsonl:
    """One line for each step: `step`, and its metrics; a NaN is null."""

    def __init__(self, path: Path):
        self.file = path.open("a", buffering=1)

    def log(self, step: int, metrics: Mapping[str, Number]) -> None:
        """Append a line; a killed process loses none that were written."""
        self.file.write(json.dumps({"step": step, **plain(metrics)}) + "\n")

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Close the file."""
        self.file.close()


class WandbRun:
    """A run at Weights & Biases, offline without a login. Its troubles are logged once and end it, not the run.

    Args:
        settings: the recipe's `track.wandb`.
        folder: the run folder; W&B's own files go below it.
        name: of the run.
        config: the resolved recipe.
    """

    def __init__(self, settings: recipe.Wandb, folder: Path, name: str, config: Mapping[str, Any]):
        self.run: Any = None
        try:
            import wandb

            self.run = wandb.init(
                project=settings.project,
                entity=settings.entity,
                group=settings.group,
                tags=list(settings.tags),
                name=name,
                config=dict(config),
                dir=str(folder),
                mode=wandb_mode(settings.mode),
                settings=wandb.Settings(silent=True, console="off", init_timeout=30),
            )
        except Exception as error:
            self._give_up(error)

    def log(self, step: int, metrics: Mapping[str, Number]) -> None:
        """Send one step."""
        if self.run is not None:
            try:
                self.run.log(plain(metrics), step=step)
            except Exception as error:
                self._give_up(error)

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Send the summary and close."""
        if self.run is not None:
            try:
                self.run.summary.update(dict(summary))
                self.run.finish()
            except Exception as error:
                self._give_up(error)

    def _give_up(self, error: Exception) -> None:
        log.warning("W&B: %s: %s. The run goes on; metrics.jsonl has everything.", type(error).__name__, error)
        self.run = None


def wandb_mode(asked: str) -> Any:
    """ "online" or "offline": auto is online where a key is in the environment or in ~/.netrc, so that nothing prompts."""
    if asked == "auto" and os.environ.get("WANDB_MODE"):
        return os.environ["WANDB_MODE"]
    if asked != "auto":
        return "offline" if asked == "online" and not _has_login() else asked
    return "online" if _has_login() else "offline"


def _has_login() -> bool:
    import netrc

    if os.environ.get("WANDB_API_KEY"):
        return True
    try:
        return netrc.netrc().authenticators("api.wandb.ai") is not None
    except (OSError, netrc.NetrcParseError):
        return False


class Tracker:
    """Every place at once; on processes other than the first, none."""

    def __init__(self, places: list[Jsonl | WandbRun]):
        self.places = places

    def log(self, step: int, metrics: Mapping[str, Number]) -> None:
        """Send one step's numbers everywhere."""
        for place in self.places:
            place.log(step, metrics)

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Send the summary and close everything."""
        for place in self.places:
            place.finish(summary)


def rewind(path: Path, step: int) -> None:
    """Take the lines after `step` out of a metrics file, for a resume writes them again; they are kept beside it."""
    if not path.exists():
        return
    lines = path.read_text().splitlines()
    keep = [line for line in lines if _step(line) <= step]
    if len(keep) < len(lines):
        from prefopt.checkpoint import unused

        path.rename(unused(path.with_name("metrics-before-resume.jsonl")))
        staging = path.with_suffix(".writing")
        staging.write_text("".join(line + "\n" for line in keep))
        staging.rename(path)


def _step(line: str) -> float:
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError):
        return math.inf  # cut short by the kill


def plain(metrics: Mapping[str, Number]) -> dict[str, Number | None]:
    """JSON has no NaN and no infinity."""
    return {name: value if math.isfinite(value) else None for name, value in metrics.items()}
