"""What a run cost: labels, tokens, floating-point operations, seconds."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from prefopt.finished import Finished


@dataclass(frozen=True)
class Costs:
    """Of one run, from its recipe, manifest and metrics; NaN where these do not say.

    Attributes:
        labels: judged rows that were learnt from: distinct recorded rows, or completions judged in rollouts.
        trained_tokens: prompt and completion tokens that passed through an update, each pass counted.
        sampled_tokens: written by the policy in rollouts.
        flops: 6 · parameters a trained token (4 where most are frozen: no gradients of weights), 2 more for a reference, and 2 a
            sampled token. Attention and feedback models are left out.
        seconds: of training; evaluation is not in it.
    """

    labels: float
    trained_tokens: float
    sampled_tokens: float
    flops: float
    seconds: float


NAMES = {
    "labels": "labels used",
    "trained_tokens": "tokens trained on",
    "sampled_tokens": "tokens sampled",
    "flops": "FLOPs (estimate)",
    "seconds": "seconds of training",
}


def costs(run: Finished) -> Costs:
    """Steps that were not logged (`track.every`) are taken to have cost what the others did."""
    lines = [line for line in run.history if "tokens" in line]
    steps = max((int(line["step"]) for line in run.history), default=0)
    scale = steps / len(lines) if lines else 0.0
    tokens, seconds = (scale * sum(line.get(name, 0) for line in lines) for name in ("tokens", "seconds"))
    train, source = run.recipe.get("train", {}), run.recipe.get("source", {})
    size, rollouts = train.get("batch_size", math.nan), source.get("rollouts")
    rows = run.manifest.get("data", {}).get("train", {}).get("rows", math.inf)
    sampled, labels = 0.0, float(min(steps * size, rows))
    if rollouts is not None:
        labels = float(steps * size * rollouts.get("completions", 1))
        lengths = [line["rollouts/length"] for line in lines if line.get("rollouts/length") is not None]
        sampled = labels * sum(lengths) / len(lengths) if lengths else math.nan
    model = run.manifest.get("model", {})
    parameters = model.get("parameters", math.nan)
    each = (6 if model.get("trainable", 0) > parameters / 2 else 4) + 2 * _has_reference(run)
    return Costs(labels, tokens, sampled, parameters * (each * tokens + 2 * sampled), seconds)


def mean_costs(runs: Sequence[Finished]) -> Costs:
    """Over the runs of an arm that trained at all."""
    found = [costs(run) for run in runs if run.history]
    if not found:
        return Costs(*[math.nan] * len(NAMES))
    return Costs(*(sum(getattr(cost, name) for cost in found) / len(found) for name in NAMES))


def _has_reference(run: Finished) -> bool:
    """Whether the objective asks for one; a plug-in that cannot be loaded here is taken to."""
    from prefopt.objectives import CATALOGUE

    names = [term.get("name") for term in run.recipe.get("objective", [])]
    return any(CATALOGUE[name]().needs.reference if name in CATALOGUE else True for name in names)
