"""What each held-out metric is measured by; its names are known before torch is imported."""

from collections.abc import Iterable

from prefopt import recipe
from prefopt.recipe.schema.evaluate import GAPS

OF_PAIRS = "held-out rows with a better and a worse completion"
OF_SAMPLES = "evaluate.prompts above 0"
OF_SCORERS = f"an objective that trains rewards, and {OF_PAIRS}"
MEASURED_BY = {
    **dict.fromkeys(("gold", "gold_missing"), "evaluate.gold"),
    **dict.fromkeys(
        ("reward", "reward_missing"), "source.rollouts and a `feedback` without language models that judge"
    ),
    **dict.fromkeys(("win_rate", "win_rate_length_controlled", "ties", "win_rate_missing"), "evaluate.judge"),
    **dict.fromkeys(("accuracy", "likelihood_accuracy"), OF_PAIRS),
    **dict.fromkeys([f"logratio_{part}" for part in ("chosen", "rejected", "margin")], OF_PAIRS),
    **dict.fromkeys([f"rewards_{part}" for part in ("chosen", "rejected", "margin")], OF_SCORERS),
    **dict.fromkeys(("pair_nll", "brier", "ece"), OF_SCORERS),
    **dict.fromkeys([f"accuracy_{size}_gap" for size in GAPS], f"{OF_SCORERS} with scores"),
    **dict.fromkeys(
        ("step_accuracy", "step_nll"), "an objective that learns labels of steps, and held-out rows with `step_labels`"
    ),
    "nll": "held-out rows with a best completion",
    **dict.fromkeys(
        ("kl", "kl_k3"), f"{OF_SAMPLES} and evaluate.sampling with temperature above 0, top_p 1 and top_k 0"
    ),
    **dict.fromkeys(("length", "ended", "distinct_1", "distinct_2"), OF_SAMPLES),
    **dict.fromkeys(("return", "turns", "return_missing"), "evaluate.environment, or that of the rollouts"),
}
"""What a recipe must have for a metric to be measured; one's own metrics are in `evaluate.metrics`."""


def measured_by(name: str) -> str:
    """What a recipe must have for this metric to be measured."""
    of_set, _, rest = name.rpartition("/")
    metric, _, part = rest.partition("[")
    if of_set:
        return f"`evaluate.sets: {{{of_set}: {{data: …}}}}`, and {measured_by(rest)}"
    if part:
        return f"`evaluate.by: {part.partition('=')[0]}`, and {measured_by(metric)}"
    return MEASURED_BY.get(
        name,
        f"`evaluate.metrics: {{{name}: file.py:function}}`, or an environment that has it in `logs` and its turns' `info`",
    )


def known_metrics(recipes: Iterable[recipe.Recipe]) -> set[str] | None:
    """The names, without set and part, that metrics of these recipes may have; None where an environment adds what it logs."""
    names = set(MEASURED_BY)
    for one in recipes:
        if one.evaluated_in is not None:
            return None
        for name, spec in one.evaluate.metrics.items():
            own = [f"{name}_{value}" for value in spec.values] or [name]
            names.update(own, (f"{each}_missing" for each in own))
    return names
