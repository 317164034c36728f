"""Whether a judge has shown that it can be trusted: its report, and what a recipe requires of it."""

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from prefopt.feedback.judges.models import describe
from prefopt.support.errors import PrefoptError, nearest
from prefopt.types import Estimate

log = logging.getLogger(__name__)

Bounds = tuple[float | None, float | None]
"""Lowest and highest value, None for any."""


def untrusted(estimates: Mapping[str, Estimate], require: Mapping[str, Bounds]) -> str:
    """Which estimate does not keep its bounds with its whole interval, in words; nothing where all do.

    Raises:
        PrefoptError: there is no such estimate.
    """
    for name, (low, high) in require.items():
        if name not in estimates:
            raise PrefoptError(
                f"require: no estimate {name!r} in the judge's report.{nearest(name, estimates)} It has: {', '.join(estimates)}"
            )
        e = estimates[name]
        if (low is not None and not e.low >= low) or (high is not None and not e.high <= high):
            bounds = (
                f"at least {low:g}" if high is None else f"at most {high:g}" if low is None else f"{low:g} to {high:g}"
            )
            return f"{name} is {e}, and its whole interval must be {bounds}"
    return ""


def check_report(file: str, identity: Mapping[str, Any], require: Mapping[str, Bounds]) -> None:
    """Refuse a judge whose report is not there, is of another judge, or does not keep these bounds.

    Args:
        file: what `prefopt evaluate JUDGE_RECIPE --out FILE` wrote.
        identity: of the judge that is to be used.
        require: bounds of the report's estimates.

    Raises:
        PrefoptError: says which.
    """
    path = Path(file).expanduser()
    if not path.is_file():
        raise PrefoptError(f"no judge report {file}: make it with `prefopt evaluate JUDGE_RECIPE --out {file}`")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        known, estimates = content["identity"], {n: _estimate(e) for n, e in content["estimates"].items()}
    except (ValueError, KeyError, TypeError) as error:
        raise PrefoptError(f"{file} is no judge report ({type(error).__name__}: {error})") from None
    mine = json.loads(json.dumps(identity))  # as it is after having been in a file
    if other := [name for name in {**known, **mine} if known.get(name) != mine.get(name)]:
        raise PrefoptError(f"{file} is the report of another judge: it differs in {', '.join(other)}; make a new one")
    if doubt := untrusted(estimates, require):
        raise PrefoptError(f"the judge is not trusted: {doubt} ({file})")


class Strangers:
    """Models behind a judge's server that its report is not of: the address and the name are the same, and the weights may not be.

    Args:
        file: the report.
    """

    def __init__(self, file: str):
        self.file = file
        content = json.loads(Path(file).expanduser().read_text(encoding="utf-8"))
        self._reported: Sequence[str] = content.get("models") or ()  # older reports, and local judges, have none
        self._noted: set[str] = set()

    def note(self, models: Sequence[str]) -> None:
        """Say, once of each, which of these models the report is not of.

        Args:
            models: what the server has said of those that answered, as `Models.all`.
        """
        for model in models:
            if self._reported and model not in self._reported and model not in self._noted:
                self._noted.add(model)
                log.warning(
                    "%s is the report of another model: now %s answers behind the judge's server, and it was measured with %s. "
                    "Make a new one",
                    self.file,
                    describe(model),
                    "; ".join(map(describe, self._reported)),
                )


def _estimate(saved: Mapping[str, Any]) -> Estimate:
    known: dict[str, Any] = {name: float("nan") if value is None else value for name, value in saved.items()}
    return Estimate(**known)
