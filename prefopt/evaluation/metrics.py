"""Measures of samples that a recipe brings itself: called like feedback, and named beside the built-in metrics."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from accelerate import Accelerator

from prefopt import recipe
from prefopt.evaluation.corpus import CorpusMetric
from prefopt.feedback import Rule, Transformed, as_scores, check_feedback, make_feedback
from prefopt.policy import Policy
from prefopt.support.errors import PrefoptError
from prefopt.types import Completion, Prompt, Verdict

BUILT_IN = frozenset(
    {
        *("accuracy", "likelihood_accuracy", "nll", "pair_nll", "brier", "ece", "step_accuracy", "step_nll"),
        *(f"{kind}_{part}" for kind in ("logratio", "rewards") for part in ("chosen", "rejected", "margin")),
        *(f"accuracy_{size}_gap" for size in ("small", "medium", "large")),
        *("gap_small_to", "gap_medium_to"),
        *("return", "turns", "length", "ended", "kl", "kl_k3", "distinct_1", "distinct_2"),
        *("gold", "reward", "win_rate", "win_rate_length_controlled", "ties"),
        *("prompt", "task", "completion", "against", "stop", "opening", "messages", "turn_rewards", "info"),
    }
)
"""Names that evaluations use already, for metrics and for what else is written beside a sample."""


def metric_key(name: str) -> str:
    """The key of the recipe under which what measures a metric stands."""
    return {"gold": "evaluate.gold", "reward": "feedback"}.get(name, f"evaluate.metrics.{name}")


def value_names(name: str, metrics: Mapping[str, recipe.Metric]) -> dict[str, str]:
    """The metrics that a metric of several values is measured as, `NAME_VALUE`, each with the value; none of any other."""
    return {f"{name}_{value}": value for value in metrics[name].values} if name in metrics else {}


def own_names(metrics: Mapping[str, recipe.Metric], over: str) -> list[str]:
    """The names of the recipe's own metrics over completions, or over the corpus."""
    return [
        own for name, spec in metrics.items() if spec.over == over for own in (value_names(name, metrics) or [name])
    ]


def check_metrics(metrics: Mapping[str, recipe.Metric]) -> None:
    """Refuse what `make_metrics` would, as far as that can be known without loading a model.

    Raises:
        PrefoptError: a name that is taken or that trackers could not use; something that cannot be called like feedback; running
            numbers, with which earlier and later values could not be compared.
    """
    for name, spec in metrics.items():
        names = list(value_names(name, metrics)) or [name]
        for own in names:
            if own in BUILT_IN or own.endswith(("_missing", "_at_kl")):
                called = "" if own == name else f" {own}"
                raise PrefoptError(
                    f"{metric_key(name)}: there is a built-in metric of this name{called}; give yours another"
                )
        if not all(re.fullmatch(r"\w+", own) for own in names):
            raise PrefoptError(f"{metric_key(name)}: a metric's name has letters, digits and _ alone")
        check_feedback(spec, metric_key(name), fixed=True)
    every = Counter(own for over in ("completions", "corpus") for own in own_names(metrics, over))
    if twice := [own for own, count in every.items() if count > 1]:
        raise PrefoptError(f"evaluate.metrics: two metrics would be called {twice[0]}; give one another name")


def make_metrics(
    metrics: Mapping[str, recipe.Metric], accelerator: Accelerator, policy: Policy | None = None
) -> tuple[dict[str, Transformed], dict[str, CorpusMetric]]:
    """What measures samples, by name, ready to be called with prompts, completions and rows: of each, and of all together.

    Args:
        metrics: the recipe's `evaluate.metrics`.
        accelerator: for constructors that ask for it.
        policy: that is trained, likewise.

    Raises:
        PrefoptError: what `check_metrics` refuses, or a model that cannot be loaded.
    """
    check_metrics(metrics)
    of_each: dict[str, Transformed] = {}
    of_all: dict[str, CorpusMetric] = {}
    for name, spec in metrics.items():
        made = make_feedback(spec, accelerator, metric_key(name), policy)
        function = made.feedback.function if isinstance(made.feedback, Rule) else made.feedback
        if spec.over == "corpus":
            of_all[name] = CorpusMetric(function, made.name, spec.timeout)
        else:
            of_each[name] = replace(made, feedback=Several(function, spec.values, made.name)) if spec.values else made
    return of_each, of_all


@dataclass(frozen=True)
class Several:
    """A metric whose function returns a mapping of names to numbers for each completion.

    Attributes:
        function: called like feedback.
        values: the names.
        name: what messages call it.
    """

    function: Any
    values: tuple[str, ...]
    name: str

    def __call__(
        self, prompts: Sequence[Prompt], completions: Sequence[Sequence[Completion]], rows: Sequence[Mapping[str, Any]]
    ) -> Verdict:
        """Named scores [B, K] alone.

        Raises:
            PrefoptError: it returned something else than a mapping of these names to B × K numbers.
        """
        answer = self.function(prompts, completions, rows)
        if not isinstance(answer, Mapping) or set(answer) != set(self.values):
            returned = (
                f"the keys {', '.join(map(str, answer))}" if isinstance(answer, Mapping) else type(answer).__name__
            )
            raise PrefoptError(
                f"{self.name} must return a mapping with the keys {', '.join(self.values)}, which the recipe's `values` names; it "
                f"returned {returned}"
            )
        named = {value: as_scores(answer[value], f"{self.name}, of {value},") for value in self.values}
        return Verdict(torch.full_like(named[self.values[0]], torch.nan), named=named)

    @property
    def parts(self) -> Sequence[Any]:
        """The function."""
        return (self.function,)
