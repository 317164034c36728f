"""Which held-out metrics the evaluations of a run will have, known before a model is loaded."""

from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType

from prefopt import recipe
from prefopt.data import Example
from prefopt.data.steps import LABELS
from prefopt.environments.making import logged_by
from prefopt.evaluation.breakdown import part_name, values_of
from prefopt.evaluation.calibration import by_gap
from prefopt.evaluation.held_out import best, gaps, pairs
from prefopt.evaluation.metrics import own_names
from prefopt.feedback import is_bare
from prefopt.objectives import load_objective
from prefopt.recipe.schema.evaluate import GAPS


def held_out_metrics(
    settings: recipe.Recipe,
    scorer: bool,
    rows: Sequence[Example] | None = None,
    sets: Mapping[str, Sequence[Example]] = MappingProxyType({}),
) -> list[str]:
    """The metrics that are measured before and after a run.

    Args:
        settings: the recipe.
        scorer: whether an objective trains rewards, so that there is no policy to draw samples from.
        rows: held-out rows; None where they are not there yet, and may have whatever is needed.
        sets: rows of further sets, by name.
    """
    rewarded = settings.source.rollouts is not None and settings.feedback is not None and is_bare(settings.feedback)
    logged = () if scorer or settings.evaluated_in is None else ("return", "turns", *logged_by(settings.evaluated_in))
    steps = any(load_objective(t.name, **t.fields).needs.step_rewards == "logit" for t in settings.objective)
    names = [*_of_steps(steps, settings.evaluate, rows), *_measured(settings.evaluate, scorer, rows, rewarded, logged)]
    for of_set, own in sets.items():
        # A run keeps samples of test rows alone, so sets meet no other run.
        alone = settings.evaluate if settings.evaluate.against is None else _without_judge(settings.evaluate)
        own_names = [*_of_steps(steps, alone, own), *_measured(alone, scorer, own, rewarded, logged)]
        names += [f"{of_set}/{name}" for name in own_names]
    return names


def _without_judge(evaluate: recipe.Evaluate) -> recipe.Evaluate:
    return evaluate.model_copy(update={"judge": None, "against": None})


def _measured(
    evaluate: recipe.Evaluate,
    scorer: bool,
    rows: Sequence[Example] | None,
    rewarded: bool,
    logged: Sequence[str],
) -> list[str]:
    """On one part of the data."""
    known = None if rows is None else rows[: evaluate.rows]
    in_pairs = None if known is None else pairs(known)
    means = list(_of_pairs(scorer, in_pairs)) if in_pairs or in_pairs is None else []
    numbers = ["ece"] if scorer and means else []
    if not scorer:
        if means or (known is not None and best(known)):
            means.append("nll")
        if evaluate.prompts and (rows is None or rows):
            means += [*_of_samples(evaluate, rewarded), *logged]
            numbers += [*_numbers_of_samples(evaluate, rewarded), *["return_missing"] * bool(logged)]
    parts = [(column, value) for column in evaluate.by for value in values_of(rows or (), column)]
    return [*means, *(part_name(name, *part) for part in parts for name in means), *numbers]


def _of_steps(steps: bool, evaluate: recipe.Evaluate, rows: Sequence[Example] | None) -> Iterator[str]:
    """Of a scorer that learns labels of steps."""
    if steps and (rows is None or any(LABELS in row.columns for row in rows[: evaluate.rows])):
        parts = [(column, value) for column in evaluate.by for value in values_of(rows or (), column)]
        for name in ("step_accuracy", "step_nll"):
            yield from (name, *(part_name(name, *part) for part in parts))


def _of_pairs(scorer: bool, pairs: Sequence[Example] | None) -> Iterator[str]:
    kind = "rewards" if scorer else "logratio"
    yield from ("accuracy", *(f"{kind}_{part}" for part in ("chosen", "rejected", "margin")))
    if not scorer:
        yield "likelihood_accuracy"
        return
    yield from ("pair_nll", "brier")
    gap = None if pairs is None else gaps(pairs)
    sizes = GAPS if pairs is None else () if gap is None else by_gap(gap, gap)[0]
    yield from (f"accuracy_{size}_gap" for size in sizes)


def _of_samples(evaluate: recipe.Evaluate, rewarded: bool) -> Iterator[str]:
    """Means over samples."""
    sampling = evaluate.sampling
    yield from ("length", "ended")
    if sampling.temperature != 0 and sampling.top_p == 1 and not sampling.top_k:
        yield from ("kl", "kl_k3")
    if evaluate.judge is not None:
        yield from ("win_rate", "win_rate_length_controlled", "ties")
    yield from _scored(evaluate, rewarded)


def _numbers_of_samples(evaluate: recipe.Evaluate, rewarded: bool) -> Iterator[str]:
    """Numbers of all samples together, without a value for each."""
    yield from ("distinct_1", "distinct_2", *own_names(evaluate.metrics, "corpus"))
    judged = ["win_rate"] * (evaluate.judge is not None)
    yield from (f"{name}_missing" for name in (*judged, *_scored(evaluate, rewarded)))


def _scored(evaluate: recipe.Evaluate, rewarded: bool) -> list[str]:
    """What feedback measures of each sample."""
    built_in = [*["gold"] * (evaluate.gold is not None), *["reward"] * rewarded]
    return [*built_in, *own_names(evaluate.metrics, "completions")]
