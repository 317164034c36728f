"""Preference-optimization research: one objective interface, one loop, one batch shape.

import prefopt

prefopt.run(prefopt.load_recipe("recipes/pocket/dpo.yaml", ["objective.beta=0.3"]))
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from prefopt import objectives
    from prefopt.objectives import load_objective
    from prefopt.objectives.contract import check_objective
    from prefopt.objectives.maths import pair_metrics
    from prefopt.objectives.parts import log_ratios, reference_sums
    from prefopt.objectives.terms import evaluate_loss
    from prefopt.recipe import Recipe, load_recipe
    from prefopt.runs.label import LabelRecipe, LabelResult, label, load_label_recipe
    from prefopt.runs.outcome import RunResult
    from prefopt.runs.python import run
    from prefopt.study import Study, load_study, run_study
    from prefopt.study.comparison.compare import compare
    from prefopt.study.comparison.comparison import Comparison
    from prefopt.support.errors import PrefoptError
    from prefopt.types import (
        Adaptive,
        Batch,
        Feedback,
        Loss,
        Model,
        Needs,
        Objective,
        Outputs,
        Sampled,
        Sampler,
        Source,
        Targets,
        Verdict,
    )

__all__ = [
    "Adaptive",
    "Batch",
    "Comparison",
    "Feedback",
    "LabelRecipe",
    "LabelResult",
    "Loss",
    "Model",
    "Needs",
    "Objective",
    "Outputs",
    "PrefoptError",
    "Recipe",
    "RunResult",
    "Sampled",
    "Sampler",
    "Source",
    "Study",
    "Targets",
    "Verdict",
    "check_objective",
    "compare",
    "evaluate_loss",
    "label",
    "load_label_recipe",
    "load_objective",
    "load_recipe",
    "load_study",
    "log_ratios",
    "objectives",
    "pair_metrics",
    "reference_sums",
    "run",
    "run_study",
]

_HOMES = {
    "LabelRecipe": "runs.label",
    "LabelResult": "runs.label",
    "Comparison": "study.comparison.comparison",
    "PrefoptError": "support.errors",
    "Recipe": "recipe",
    "RunResult": "runs.outcome",
    "Study": "study",
    "check_objective": "objectives.contract",
    "compare": "study.comparison.compare",
    "evaluate_loss": "objectives.terms",
    "label": "runs.label",
    "load_label_recipe": "runs.label",
    "load_objective": "objectives",
    "load_recipe": "recipe",
    "load_study": "study",
    "log_ratios": "objectives.parts",
    "pair_metrics": "objectives.maths",
    "reference_sums": "objectives.parts",
    "run": "runs.python",
    "run_study": "study",
}
"""Where the public names live; those of `types` are not listed."""


def __getattr__(name: str) -> Any:
    """Import on first use: torch and transformers take seconds, and `prefopt run --help` needs neither."""
    if name not in __all__:
        raise AttributeError(f"module 'prefopt' has no attribute {name!r}")
    if name == "objectives":
        return importlib.import_module("prefopt.objectives")
    value = getattr(importlib.import_module(f"prefopt.{_HOMES.get(name, 'types')}"), name)
    globals()[name] = value
    return value
