"""Preference-optimization research: one objective interface, one loop, one batch shape.

import prefopt

prefopt.run("recipes/pocket/dpo.yaml", "objective.beta=0.3")
"""

from typing import TYPE_CHECKING

from prefopt.support.lazy_names import on_first_use
from prefopt.support.logs import quiet_imports

if TYPE_CHECKING:
    from prefopt import objectives
    from prefopt.data import load_examples, tokenise
    from prefopt.environments import check_environment
    from prefopt.evaluation.evaluation import Evaluation
    from prefopt.evaluation.evaluator import Evaluator
    from prefopt.objectives import load_objective
    from prefopt.objectives.contract import check_objective
    from prefopt.objectives.contract.case import make_case
    from prefopt.objectives.maths import pair_metrics
    from prefopt.objectives.parts import log_ratios, reference_sums
    from prefopt.objectives.terms import Term, evaluate_loss
    from prefopt.policy import Policy, Reference, Scorer, TransformersSampler, load_policy, load_scorer, load_tokenizer
    from prefopt.recipe import Recipe, load_recipe
    from prefopt.runs.exporting import Exported, export
    from prefopt.runs.label import LabelRecipe, LabelResult, label, load_label_recipe
    from prefopt.runs.outcome import RunResult
    from prefopt.runs.preparing import Prepared, prepare
    from prefopt.runs.python import run
    from prefopt.sources.recorded import Recorded
    from prefopt.sources.rollouts import Rollouts
    from prefopt.study import Study, load_study, run_study
    from prefopt.study.comparison.compare import compare
    from prefopt.study.comparison.comparison import Comparison
    from prefopt.support.errors import PrefoptError
    from prefopt.training.loop import Step, Trainer
    from prefopt.types import (
        Adaptive,
        Batch,
        Environment,
        Feedback,
        Loss,
        Message,
        Model,
        Needs,
        Objective,
        Outputs,
        Prompt,
        Sampled,
        Sampler,
        Source,
        Targets,
        Turn,
        Verdict,
    )

__all__ = [
    "Adaptive",
    "Batch",
    "Comparison",
    "Environment",
    "Evaluation",
    "Evaluator",
    "Exported",
    "Feedback",
    "LabelRecipe",
    "LabelResult",
    "Loss",
    "Message",
    "Model",
    "Needs",
    "Objective",
    "Outputs",
    "Policy",
    "PrefoptError",
    "Prepared",
    "Prompt",
    "Recipe",
    "Recorded",
    "Reference",
    "Rollouts",
    "RunResult",
    "Sampled",
    "Sampler",
    "Scorer",
    "Source",
    "Step",
    "Study",
    "Targets",
    "Term",
    "Trainer",
    "TransformersSampler",
    "Turn",
    "Verdict",
    "check_environment",
    "check_objective",
    "compare",
    "evaluate_loss",
    "export",
    "label",
    "load_examples",
    "load_label_recipe",
    "load_objective",
    "load_policy",
    "load_recipe",
    "load_scorer",
    "load_study",
    "load_tokenizer",
    "log_ratios",
    "make_case",
    "objectives",
    "pair_metrics",
    "prepare",
    "reference_sums",
    "run",
    "run_study",
    "tokenise",
]

_HOMES = {
    "Comparison": "study.comparison.comparison",
    "Evaluation": "evaluation.evaluator",
    "Evaluator": "evaluation.evaluator",
    "Exported": "runs.exporting",
    "LabelRecipe": "runs.label",
    "LabelResult": "runs.label",
    "Policy": "policy",
    "PrefoptError": "support.errors",
    "Prepared": "runs.preparing",
    "Recipe": "recipe",
    "Recorded": "sources.recorded",
    "Reference": "policy",
    "Rollouts": "sources.rollouts",
    "RunResult": "runs.outcome",
    "Scorer": "policy",
    "Step": "training.loop",
    "Study": "study",
    "Term": "objectives.terms",
    "Trainer": "training.loop",
    "TransformersSampler": "policy",
    "check_environment": "environments",
    "check_objective": "objectives.contract",
    "compare": "study.comparison.compare",
    "evaluate_loss": "objectives.terms",
    "export": "runs.exporting",
    "label": "runs.label",
    "load_examples": "data",
    "load_label_recipe": "runs.label",
    "load_objective": "objectives",
    "load_policy": "policy",
    "load_recipe": "recipe",
    "load_scorer": "policy",
    "load_study": "study",
    "load_tokenizer": "policy",
    "log_ratios": "objectives.parts",
    "make_case": "objectives.contract.case",
    "objectives": "objectives",
    "pair_metrics": "objectives.maths",
    "prepare": "runs.preparing",
    "reference_sums": "objectives.parts",
    "run": "runs.python",
    "run_study": "study",
    "tokenise": "data",
}
"""Where the public names live; those of `types` are not listed."""

quiet_imports()

__getattr__ = on_first_use(__name__, {name: f"prefopt.{_HOMES.get(name, 'types')}" for name in __all__})


def __dir__() -> list[str]:
    """The public names, whether they are imported yet or not."""
    return sorted({*globals(), *__all__})
