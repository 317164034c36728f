"""What cannot be done while weights are sharded (`train.shard`), refused before a model is loaded."""

from collections.abc import Iterator

from prefopt import recipe
from prefopt.environments import asks_for_models
from prefopt.feedback import asking_the_policy
from prefopt.policy import DIVERGENCES, find_model
from prefopt.policy.finding import adapter_config
from prefopt.support.errors import PrefoptError
from prefopt.support.given import Given
from prefopt.support.plugins import asks_for, find
from prefopt.types import Needs

OPTIMISERS = ("adamw", "sgd", "rmsprop")
"""Those that work on each number by itself, so that it does not matter which process holds it."""


def check_sharding(settings: recipe.Recipe, needs: Needs) -> None:
    """Refuse what sharded weights do not do, on any number of processes: a run may go on with another.

    Args:
        settings: the recipe.
        needs: of its objectives.

    Raises:
        PrefoptError: says what, and what to do instead.
    """
    if settings.train.shard is None:
        return
    for what in _refused(settings, needs):
        raise PrefoptError(f"train.shard is {settings.train.shard.name}, and {what}, or leave train.shard out")


def _refused(settings: recipe.Recipe, needs: Needs) -> Iterator[str]:
    train = settings.train
    if train.precision == "fp16":
        yield "its loss scale would have to be that of all processes: write train.precision: bf16 or fp32"
    if train.optimizer.name not in OPTIMISERS:
        yield (
            f"train.optimizer: {train.optimizer.name} may look at whole matrices, of which a process holds a part: take "
            f"{', '.join(OPTIMISERS)}"
        )
    if settings.reference.every is not None:
        yield "a reference that follows the policy is not sharded with it: leave out reference.every"
    if exact := sorted((needs.statistics | needs.watched) & DIVERGENCES.keys()):
        yield (
            f"{exact[0]} is computed from the logits of policy and reference together, which are sharded apart: take an objective "
            "with an estimate of the KL"
        )
    yield from _of_adapters(settings.policy)
    yield from _of_samples(settings)
    yield from _of_calls(settings)


def _of_adapters(policy: recipe.Policy) -> Iterator[str]:
    if policy.adapter is None:
        return
    if not isinstance(policy.adapter, recipe.Adapter):
        yield f"of adapters only LoRA is sharded, not {policy.adapter.method}: leave out policy.adapter.method"
    name = find_model(policy.model)
    if isinstance(name, Given) or adapter_config(name) is not None:
        yield (
            f"{name} is {'a loaded model' if isinstance(name, Given) else 'an adapter'}, into which a new adapter would be merged "
            "to be saved: begin from a folder with whole weights (`prefopt export` makes one)"
        )


def _of_samples(settings: recipe.Recipe) -> Iterator[str]:
    sections = {"source.rollouts": settings.source.rollouts, "evaluate": settings.evaluate}
    for key, section in sections.items():
        if section is None:
            continue
        sampler = section.samples if isinstance(section, recipe.Evaluate) else section
        if sampler.sampler not in recipe.SAMPLERS:
            known = " or ".join(recipe.SAMPLERS)
            yield f"{key}.sampler: {sampler.sampler} would read weights that no process has whole: take {known}"
        if section.environment is not None and asks_for_models(section.environment, f"{key}.environment"):
            yield (
                f"{key}.environment: {section.environment.name} asks for the run's models, which would have to be asked by all "
                "processes at once: take one that does not"
            )


def _of_calls(settings: recipe.Recipe) -> Iterator[str]:
    """What would ask the policy on the main process alone, which has a part of it."""
    evaluate = settings.evaluate
    feedbacks = {"feedback": settings.feedback, "cost": settings.cost}
    feedbacks |= {"evaluate.gold": evaluate.gold, "evaluate.judge": evaluate.judge}
    feedbacks |= {f"evaluate.metrics.{name}": metric for name, metric in evaluate.metrics.items()}
    for key, spec in feedbacks.items():
        for name in () if spec is None else asking_the_policy(spec, key):
            yield f"{key}: {name} would ask the policy on one process alone: give it a model of its own"
    for callback in settings.train.callbacks:
        if ":" in callback.name and asks_for("policy", find(callback.name, "callback", where="train.callbacks")):
            yield f"the callback {callback.name} asks for the policy on one process alone: let it do without"
