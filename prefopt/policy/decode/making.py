"""From the name in a recipe to a sampler."""

from typing import Any

from accelerate import Accelerator

from prefopt import recipe
from prefopt.policy.decode.sampler import TransformersSampler
from prefopt.policy.decode.vllm import START, VLLMSampler
from prefopt.support.errors import PrefoptError, nearest
from prefopt.support.plugins import load_object

KNOWN = ("transformers", "vllm")


def check_sampler(spec: recipe.Samples, where: str = "source.rollouts") -> None:
    """Refuse what `make_sampler` would, as far as that can be known without a model.

    Raises:
        PrefoptError: an unknown name, or a server that is not named.
    """
    if spec.sampler not in KNOWN and ":" not in spec.sampler:
        raise PrefoptError(
            f"{where}.sampler: unknown sampler {spec.sampler!r}.{nearest(spec.sampler, KNOWN)} Known: "
            f"{', '.join(KNOWN)}; your own is named `file.py:Class`"
        )
    if spec.sampler == "vllm" and spec.server is None:
        raise PrefoptError(f"{where}.sampler is vllm, and {where}.server is not given: {START}")


def make_sampler(spec: recipe.Samples, accelerator: Accelerator, where: str = "source.rollouts") -> Any:
    """The `Sampler` that a recipe names; a user's own class is made without arguments.

    Raises:
        PrefoptError: an unknown name, or one whose package or server is absent.
    """
    check_sampler(spec, where)
    if spec.sampler == "transformers":
        return TransformersSampler(spec.batch_size, accelerator.autocast)
    if spec.sampler == "vllm":
        return VLLMSampler(spec.server, accelerator)
    return load_object(spec.sampler)()
