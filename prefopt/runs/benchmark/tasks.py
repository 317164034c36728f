"""A run or a language model on tasks of lm-evaluation-harness: measured, recorded, and added to its run."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console

from prefopt.evaluation.benchmarks.harness import Tasks, check_tasks, run_tasks
from prefopt.runs.benchmark.adding import name_of_tasks, refuse_adding, result_name
from prefopt.runs.benchmark.targets import Manner, Prompts, find_target, load_language_model
from prefopt.runs.folder import RunFolder
from prefopt.runs.manifest import circumstances
from prefopt.support.dates import fixed_date
from prefopt.support.errors import PrefoptError
from prefopt.support.json_values import json_values
from prefopt.training.devices import computing, of_main_process


def tasks(
    name: str,
    names: Sequence[str],
    console: Console,
    *,
    overrides: Sequence[str] = (),
    include: Sequence[str] = (),
    prompts: Prompts | None = None,
    limit: int | None = None,
    fewshot: int | None = None,
    batch_size: int = 16,
    called: str | None = None,
    add: bool = False,
) -> tuple[Tasks, dict[str, Any]]:
    """Evaluate a policy on tasks of lm-evaluation-harness.

    Args:
        name: of a run folder, a model, or a recipe, whose policy before training it is.
        names: of the tasks.
        console: for progress.
        overrides: of the recipe.
        include: folders with further tasks.
        prompts: as text or as turns; None is as the policy was trained.
        limit: documents of each task.
        fewshot: worked examples before each document; None is the task's own number.
        batch_size: requests in one forward pass.
        called: the name of the result; None is that of the tasks.
        add: keep the result in the run folder, where `report` finds it.

    Raises:
        PrefoptError: whatever a user can put right; what can be known before a model is loaded is refused before.
    """
    called = result_name(called, name_of_tasks(",".join(names)))
    if add:
        refuse_adding(name, called)
    if prompts == "none":
        raise PrefoptError("--prompts none is for rows with answers; a task of lm-evaluation-harness is its prompts")
    target = find_target(name, overrides, Manner(prompts=prompts))
    if target.language_model is None:
        raise PrefoptError(f"{name} is a {target.about['who']}, and lm-evaluation-harness measures language models")
    manager = check_tasks(names, include)
    with computing(target) as accelerator, fixed_date(target.date):
        console = of_main_process(accelerator, console)
        with console.status(f"loading {name}"):
            policy = load_language_model(target.language_model, accelerator)
        turns = target.about["prompts"] == "turns"
        found = run_tasks(
            policy, names, manager, accelerator, limit=limit, fewshot=fewshot, batch_size=batch_size, turns=turns
        )
        made = {**found.made, "target": name, "limit": limit, **circumstances(target.settings, accelerator)}
        if add and accelerator.is_main_process:
            RunFolder(Path(name)).write_measured(called, made, found.evaluation)
    return found, made


def to_json(found: Tasks, made: Mapping[str, Any]) -> str:
    """Every metric with its interval."""
    metrics = {
        m.name: json_values(asdict(m.estimate)) | {"higher_is_better": m.higher_is_better} for m in found.metrics
    }
    return json.dumps({"made": made, "metrics": metrics}, indent=1, ensure_ascii=False, default=repr)
