"""Which held-out metrics the evaluations of a run will have, known before a model is loaded, and what each is measured by."""

from collections.abc import Iterator, Sequence

from prefopt import recipe
from prefopt.data import Example
from prefopt.evaluation.calibration import GAPS, by_gap
from prefopt.evaluation.held_out import best, gaps, pairs

OF_PAIRS = "held-out rows with a better and a worse completion"
OF_SAMPLES = "evaluate.prompts above 0"
OF_SCORERS = f"an objective that trains rewards, and {OF_PAIRS}"
MEASURED_BY = {
    **dict.fromkeys(("gold", "gold_missing"), "evaluate.gold"),
    **dict.fromkeys(("win_rate", "win_rate_length_controlled", "ties", "win_rate_missing"), "evaluate.judge"),
    **dict.fromkeys(("accuracy", "likelihood_accuracy"), OF_PAIRS),
    **dict.fromkeys([f"logratio_{part}" for part in ("chosen", "rejected", "margin")], OF_PAIRS),
    **dict.fromkeys([f"rewards_{part}" for part in ("chosen", "rejected", "margin")], OF_SCORERS),
    **dict.fromkeys(("pair_nll", "brier", "ece"), OF_SCORERS),
    **dict.fromkeys([f"accuracy_{size}_gap" for size in GAPS], f"{OF_SCORERS} with scores"),
    "nll": "held-out rows with a best completion",
    **dict.fromkeys(
        ("kl", "kl_k3"), f"{OF_SAMPLES} and evaluate.sampling with temperature above 0, top_p 1 and top_k 0"
    ),
    **dict.fromkeys(("length", "ended", "distinct_1", "distinct_2"), OF_SAMPLES),
}
"""What a recipe must have for a metric to be measured; one's own metrics are in `evaluate.metrics`."""


def held_out_metrics(settings: recipe.Recipe, scorer: bool, rows: Sequence[Example] | None = None) -> list[str]:
    """The metrics that are measured before and after a run.

    Args:
        settings: the recipe.
        scorer: whether an objective trains rewards, so that there is no policy to draw samples from.
        rows: held-out rows; None where they are not there yet, and may have whatever is needed.
    """
    evaluate = settings.evaluate
    known = None if rows is None else rows[: evaluate.rows]
    in_pairs = None if known is None else pairs(known)
    names = list(_of_pairs(scorer, in_pairs)) if in_pairs or in_pairs is None else []
    if scorer:
        return names
    if names or (known is not None and best(known)):
        names.append("nll")
    if evaluate.prompts and (rows is None or rows):
        names += _of_samples(evaluate)
    return names


def _of_pairs(scorer: bool, pairs: Sequence[Example] | None) -> Iterator[str]:
    kind = "rewards" if scorer else "logratio"
    yield from ("accuracy", *(f"{kind}_{part}" for part in ("chosen", "rejected", "margin")))
    if not scorer:
        yield "likelihood_accuracy"
        return
    yield from ("pair_nll", "brier", "ece")
    gap = None if pairs is None else gaps(pairs)
    sizes = GAPS if pairs is None else () if gap is None else by_gap(gap, gap)[0]
    yield from (f"accuracy_{size}_gap" for size in sizes)


def _of_samples(evaluate: recipe.Evaluate) -> Iterator[str]:
    sampling = evaluate.sampling
    yield from ("length", "ended", "distinct_1", "distinct_2")
    if sampling.temperature != 0 and sampling.top_p == 1 and not sampling.top_k:
        yield from ("kl", "kl_k3")
    if evaluate.judge is not None:
        yield from ("win_rate", "win_rate_length_controlled", "ties", "win_rate_missing")
    for name in (*["gold"] * (evaluate.gold is not None), *evaluate.metrics):
        yield from (name, f"{name}_missing")
