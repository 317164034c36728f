"""Where the report of a study is asked for."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from rich.console import Console

from prefopt.study.spec import Study


class Result(NamedTuple):
    """A run of an arm."""

    arm: str
    seed: int
    folder: Path


def write_report(study: Study, folder: Path, results: Sequence[Result], console: Console) -> None:
    """The comparison of all runs, as files in the study's folder."""
