"""From the name in a recipe to a sampler."""

from typing import Any

from accelerate import Accelerator

from prefopt import recipe
from prefopt.errors import PrefoptError, nearest
from prefopt.plugins import load_object
from prefopt.policy.sampler import TransformersSampler
from prefopt.policy.vllm import VLLMSampler

KNOWN = ("transformers", "vllm")


def make_sampler(spec: recipe.Rollouts, accelerator: Accelerator) -> Any:
    """The `Sampler` that `source.rollouts.sampler` names; a user's own class is made without arguments.

    Raises:
        PrefoptError: an unknown name, or one whose package or server is absent.
    """
    if spec.sampler == "transformers":
        return TransformersSampler(spec.rows, accelerator.autocast)
    if spec.sampler == "vllm":
        return VLLMSampler(spec.server, accelerator)
    if ":" in spec.sampler:
        return load_object(spec.sampler)()
    raise PrefoptError(
        f"source.rollouts.sampler: unknown sampler {spec.sampler!r}.{nearest(spec.sampler, KNOWN)} Known: {', '.join(KNOWN)}; "
        "your own is named `file.py:Class`"
    )
