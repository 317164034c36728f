"""What cannot be done while a policy's weights are in 4 bits (`policy.quantization`), refused before a model is loaded."""

from collections.abc import Iterator

from prefopt import recipe
from prefopt.policy import find_model
from prefopt.policy.finding import adapter_config
from prefopt.runs.sharding import check_sharding
from prefopt.support.errors import PrefoptError
from prefopt.types import Needs

TRAINED_ALONE = (
    "its linear layers are held in 4 bits, which no optimiser can move: train an adapter on them (policy.adapter: {r: 16}), or "
    "leave policy.quantization out"
)


def check_weights(settings: recipe.Recipe, needs: Needs) -> None:
    """Refuse what weights do not do that are divided among processes, or in 4 bits.

    Args:
        settings: the recipe.
        needs: of its objectives.

    Raises:
        PrefoptError: says what, and what to do instead.
    """
    check_sharding(settings, needs)
    check_quantised_run(settings)


def check_quantised_run(settings: recipe.Recipe) -> None:
    """Refuse what weights in 4 bits do not do.

    Args:
        settings: of a run, or of an evaluation of one, whose policy is an adapter that was trained before.

    Raises:
        PrefoptError: says what, and what to do instead.
    """
    if settings.policy.quantization is None:
        return
    if settings.policy.adapter is None and adapter_config(find_model(settings.policy.model)) is None:
        raise PrefoptError(f"policy.quantization: {TRAINED_ALONE}")
    for what in _refused(settings):
        raise PrefoptError(f"policy.quantization is {settings.policy.quantization.type}, and {what}")


def check_adapter_trained(settings: recipe.Recipe) -> None:
    """Refuse to train an adapter on where its base is in 4 bits; to evaluate it as it is works.

    Raises:
        PrefoptError: says what to do instead.
    """
    if settings.policy.quantization is not None and settings.policy.adapter is None:
        name = find_model(settings.policy.model)
        raise PrefoptError(
            f"policy.quantization: {name} is an adapter, which is merged into its base where training goes on, and {TRAINED_ALONE}"
            f"; or write whole weights (`prefopt export {name} FOLDER`) and begin from FOLDER with a new adapter"
        )


def _refused(settings: recipe.Recipe) -> Iterator[str]:
    if settings.train.shard is not None:
        yield "weights in 4 bits are not divided among processes: leave train.shard out, or policy.quantization"
    if settings.reference.every is not None:
        yield "a reference that follows the policy would be rounded at every step: leave out reference.every"
