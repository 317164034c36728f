"""Running from Python: a recipe from anywhere, with objects where it has names."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console

from prefopt import recipe
from prefopt.recipe import Recipe
from prefopt.runs import run as runs
from prefopt.runs.outcome import RunResult


def run(
    settings: Recipe | str | Path | Mapping[str, Any],
    *overrides: str,
    data: Any = None,
    objective: Any = None,
    feedback: Any = None,
    environment: Any = None,
    metrics: Mapping[str, Any] | None = None,
    callbacks: Any = None,
    folder: str | Path | None = None,
    resume: bool = False,
    console: Console | None = None,
) -> RunResult:
    """Train, evaluate before and after, and write everything down.

    Names and objects serve alike: a class, a function, something already made, loaded models, rows of data. What an
    object was is in recipe.yaml and in the manifest, by a hash of its source or content. The process is left as it was: CPU
    threads, precision and random states are this run's alone.

    Args:
        settings: what to run: a recipe, the file of one, or its keys and values, in which objects may stand for names.
        overrides: `dotted.key=value`, the value in YAML.
        data: `source.data`: a list of dicts, a `pandas.DataFrame`, a `datasets.Dataset`, a function that yields rows, or names.
        objective: a name, a class or an objective with its fields; or a list of terms.
        feedback: what scores the policy's own completions.
        environment: `source.rollouts.environment`, what the policy acts in.
        metrics: `evaluate.metrics`: measures of samples by name, each called like feedback.
        callbacks: `train.callbacks`: one or several, each called with every `Step`.
        folder: the run folder; by default a new one below `track.folder`, named after the recipe and the seed.
        resume: go on from the last checkpoint in `folder`; objects must be the same and are given again.
        console: where a person follows it.

    Raises:
        PrefoptError: whatever a user can put right. What was done so far is kept.
    """
    objects = {
        "source.data": data,
        "objective": objective,
        "feedback": feedback,
        "source.rollouts.environment": environment,
        "evaluate.metrics": metrics,
        "train.callbacks": callbacks,
    }
    resolved = recipe.recipe_from(settings, overrides, objects)
    return runs.run(resolved, None if folder is None else Path(folder), resume, console)
