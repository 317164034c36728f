"""Measures of samples that a recipe brings itself: called like feedback, and named beside the built-in metrics."""

import re
from collections.abc import Mapping

from accelerate import Accelerator

from prefopt import recipe
from prefopt.feedback import Transformed, check_feedback, make_feedback
from prefopt.policy import Policy
from prefopt.support.errors import PrefoptError

BUILT_IN = frozenset(
    {
        *("accuracy", "likelihood_accuracy", "nll", "pair_nll", "brier", "ece"),
        *(f"{kind}_{part}" for kind in ("logratio", "rewards") for part in ("chosen", "rejected", "margin")),
        *(f"accuracy_{size}_gap" for size in ("small", "medium", "large")),
        *("gap_small_to", "gap_medium_to"),
        *("length", "ended", "kl", "kl_k3", "distinct_1", "distinct_2"),
        *("gold", "win_rate", "win_rate_length_controlled", "ties"),
        *("prompt", "completion", "against"),
    }
)
"""Names that evaluations use already, for metrics and for what else is written beside a sample."""


def metric_key(name: str) -> str:
    """The key of the recipe under which what measures a metric stands."""
    return "evaluate.gold" if name == "gold" else f"evaluate.metrics.{name}"


def check_metrics(metrics: Mapping[str, recipe.Feedback]) -> None:
    """Refuse what `make_metrics` would, as far as that can be known without loading a model.

    Raises:
        PrefoptError: a name that is taken or that trackers could not use; something that cannot be called like feedback; running
            numbers, with which earlier and later values could not be compared.
    """
    for name, spec in metrics.items():
        if name in BUILT_IN or name.endswith(("_missing", "_at_kl")):
            raise PrefoptError(f"{metric_key(name)}: there is a built-in metric of this name; give yours another")
        if not re.fullmatch(r"\w+", name):
            raise PrefoptError(f"{metric_key(name)}: a metric's name has letters, digits and _ alone")
        check_feedback(spec, metric_key(name), fixed=True)


def make_metrics(
    metrics: Mapping[str, recipe.Feedback], accelerator: Accelerator, policy: Policy | None = None
) -> dict[str, Transformed]:
    """What measures samples, by name, ready to be called with prompts, completions and rows.

    Args:
        metrics: the recipe's `evaluate.metrics`.
        accelerator: for constructors that ask for it.
        policy: that is trained, likewise.

    Raises:
        PrefoptError: what `check_metrics` refuses, or a model that cannot be loaded.
    """
    check_metrics(metrics)
    return {name: make_feedback(spec, accelerator, metric_key(name), policy) for name, spec in metrics.items()}
