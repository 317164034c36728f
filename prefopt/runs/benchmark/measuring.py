"""One target on one benchmark: measured, recorded, and added to its run."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from rich.console import Console

from prefopt.evaluation.benchmarks.cases import Case
from prefopt.evaluation.benchmarks.measuring import Measured, load_cases, measure
from prefopt.runs.benchmark.adding import name_of_rows, refuse_adding, result_name
from prefopt.runs.benchmark.targets import Manner, Target, find_target
from prefopt.runs.folder import RunFolder
from prefopt.runs.manifest import circumstances
from prefopt.support.dates import fixed_date
from prefopt.support.json_values import json_values
from prefopt.training.devices import computing, of_main_process
from prefopt.types import Estimate


def benchmark(
    name: str,
    data: str,
    console: Console,
    *,
    overrides: Sequence[str] = (),
    manner: Manner | None = None,
    kind: str | None = None,
    limit: int | None = None,
    called: str | None = None,
    add: bool = False,
) -> tuple[Measured, dict[str, Any]]:
    """Measure a run, a model or a recipe's judge on a benchmark's rows.

    Args:
        name: of the target; `find_target` says what it may be.
        data: the rows.
        console: for progress.
        overrides: of the target's recipe.
        manner: how the target reads.
        kind: the benchmark; None recognises it.
        limit: the first so many rows.
        called: the name of the result; None is that of the file.
        add: keep the result in the run folder, where `report` finds it.

    Returns:
        What came out, and how it was made.

    Raises:
        PrefoptError: whatever a user can put right; what can be known before a model is loaded is refused before.
    """
    rows_of, cases = load_cases(data, kind, limit)
    called = result_name(called, name_of_rows(data))
    if add:
        refuse_adding(name, called)
    target = find_target(name, overrides, manner or Manner())
    with computing(target) as accelerator, fixed_date(target.date):
        console = of_main_process(accelerator, console)
        with console.status(f"loading {name}"):
            feedback = target.make(accelerator)
        with console.status(f"{len(cases)} rows of {rows_of.name}"):
            measured = measure(rows_of, target.shown(cases), feedback, accelerator, name=called)
        made = _made(target, measured, data, cases, accelerator)
        if add and accelerator.is_main_process:
            RunFolder(Path(name)).write_measured(called, made, measured.evaluation)
    return measured, made


def _made(
    target: Target, measured: Measured, data: str, cases: Sequence[Case], accelerator: Accelerator
) -> dict[str, Any]:
    digest = hashlib.blake2b(digest_size=16)
    for case in cases:
        digest.update(repr((case.prompt, case.answers, case.right, case.subset)).encode("utf-8", "surrogatepass"))
    return {
        "benchmark": measured.benchmark,
        "target": target.name,
        **target.about,
        "data": {"name": data, "rows": len(cases), "fingerprint": digest.hexdigest()},
        **circumstances(target.settings, accelerator),
    }


def to_json(measured: Measured, made: Mapping[str, Any]) -> str:
    """Everything: scores with intervals, and those of every answer."""
    content = {
        "made": made,
        "overall": _record(measured.overall),
        "sections": {name: _record(e) for name, e in measured.sections.items()},
        "subsets": {name: _record(e) for name, e in measured.subsets.items()},
        "numbers": json_values(measured.numbers),
        "rows": list(measured.rows),
    }
    return json.dumps(content, indent=1, ensure_ascii=False, default=repr)


def _record(e: Estimate) -> dict[str, Any]:
    return json_values(asdict(e))
