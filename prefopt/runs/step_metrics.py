"""Which metrics the steps of a run will have, found out before a model is loaded: by one step of made-up numbers."""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace

import torch

from prefopt import recipe
from prefopt.environments.contained import COUNTS as OF_EPISODES
from prefopt.environments.making import logged_by
from prefopt.objectives.contract import make_case
from prefopt.objectives.terms import MetricKey, names, plain_names
from prefopt.objectives.terms import Term as LossTerm
from prefopt.sources.diagnostics import RolloutDiagnostics
from prefopt.sources.rollout_rows import ENDS
from prefopt.sources.rollouts import AGE, COUNTS
from prefopt.support.errors import PrefoptError, nearest
from prefopt.training.optimisers import LOW
from prefopt.types import Batch, Objective, Outputs


def check_limits(limits: Collection[str], known: Collection[str]) -> None:
    """Refuse bounds of a metric that the steps of a run do not have.

    Args:
        limits: the names of `train.limits`.
        known: the metrics of a step.

    Raises:
        PrefoptError: says which metrics there are.
    """
    for name in limits:
        if name not in known:
            raise PrefoptError(
                f"train.limits: this run has no metric {name!r}.{nearest(name, known)} It has: {', '.join(known)}"
            )


def step_metrics(settings: recipe.Recipe, objectives: Sequence[Objective]) -> list[str]:
    """The names of what every step measures.

    What an objective measures is not declared but returned, so each is asked about the batch on which its contract is checked.

    Args:
        settings: the recipe.
        objectives: one for each of its terms.
    """
    labels = names([LossTerm(objective) for objective in objectives])
    low = getattr(torch, settings.policy.dtype) in LOW and settings.policy.adapter is None
    scaled = settings.train.precision == "fp16"
    own = ("loss", "grad_norm", "lr", "padding", *["weights_moved"] * low, *["loss_scale", "overflow"] * scaled)
    metrics: dict[MetricKey, float] = {(None, name): 0.0 for name in own}
    for label, objective, term in zip(labels, objectives, settings.objective, strict=True):
        # What another term or the watch over rollouts asks for is given to all.
        case = make_case(objective, needs=replace(objective.needs, old=True, reference=True))
        targets = case.targets()
        metrics |= {(label, name): 0.0 for name in (*case.loss(targets).metrics, *targets.metrics)}
        if term.source is not None:
            metrics[label, "padding"] = 0.0
        if len(labels) > 1:
            metrics[None, f"loss/{label}"] = 0.0
    if settings.source.rollouts is not None:
        statistics = frozenset().union(*(objective.needs.statistics for objective in objectives))
        metrics |= {(None, name): 0.0 for name in _of_rollouts(settings, statistics)}
    return list(plain_names(metrics, labels))


def _of_rollouts(settings: recipe.Recipe, statistics: Collection[str]) -> Iterator[str]:
    """What is measured of a completion of one token with all that this recipe has said about completions."""
    one, token = torch.zeros(1, 1), torch.zeros(1, 1, 1)
    rollouts = settings.source.rollouts
    scored = settings.feedback is not None or (rollouts is not None and rollouts.environment is not None)
    given = {"gold": settings.evaluate.gold, "cost": settings.cost}
    columns = dict.fromkeys((name for name, spec in given.items() if spec), one)
    batch = Batch(
        ((0,),),
        token.long(),
        token == 0,
        scores=one if scored else None,
        columns=columns | {"sampler_logps": token},
    )
    outputs = Outputs(mask=batch.mask, logps=token, statistics=dict.fromkeys(("entropy", *statistics), token))
    yield from RolloutDiagnostics()(batch, outputs, outputs)
    yield from (*COUNTS, *ENDS)
    if rollouts is not None and rollouts.staleness:
        yield AGE
    if rollouts is not None and rollouts.environment is not None:
        names = ("turns", *OF_EPISODES, *logged_by(rollouts.environment))
        yield from (f"environment/{name}" for name in names)
