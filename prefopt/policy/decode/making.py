"""From the name in a recipe to a sampler."""

from collections.abc import Mapping
from typing import Any

from accelerate import Accelerator

from prefopt import recipe
from prefopt.policy.decode.sampler import TransformersSampler
from prefopt.policy.decode.vllm import START, VLLMSampler
from prefopt.policy.policy import Policy
from prefopt.support.errors import PrefoptError
from prefopt.support.plugins import LATER, check_call, make

KNOWN = ("transformers", "vllm")

ASKED = ("accelerator", "policy", "tokenizer", "settings")
"""What the constructor of a sampler can ask for, by parameter name."""

CALLED_WITH = ("model", "prompt_ids", "completions", "settings", "seeds")
"""What every sampler is called with."""


def check_sampler(spec: recipe.Samples, where: str = "source.rollouts") -> None:
    """Refuse what `make_sampler` would, as far as that can be known without a model.

    Raises:
        PrefoptError: an unknown name, or a server that is not named.
    """
    if spec.sampler not in KNOWN:
        _own(spec, dict.fromkeys(ASKED, LATER), where)
    if spec.sampler == "vllm" and spec.server is None:
        raise PrefoptError(f"{where}.sampler is vllm, and {where}.server is not given: {START}")


def make_sampler(
    spec: recipe.Samples, accelerator: Accelerator, where: str = "source.rollouts", policy: Policy | None = None
) -> Any:
    """The `Sampler` that a recipe names; a user's own class is made with what its constructor asks for.

    Args:
        spec: the section that names it.
        accelerator: knows device, precision and processes; also for a constructor with this parameter.
        where: the section's key, for messages.
        policy: which will write, for a constructor that asks for `policy` or `tokenizer`.

    Raises:
        PrefoptError: an unknown name, one whose package or server is absent, or something that cannot be called as a sampler is.
    """
    check_sampler(spec, where)
    if spec.sampler == "transformers":
        return TransformersSampler(spec.batch_size, accelerator.autocast)
    if spec.sampler == "vllm":
        return VLLMSampler(spec.server, accelerator)
    tokenizer = None if policy is None else policy.tokenizer
    return _own(spec, {"accelerator": accelerator, "policy": policy, "tokenizer": tokenizer, "settings": spec}, where)


def _own(spec: recipe.Samples, running: Mapping[str, Any], where: str) -> Any:
    key = f"{where}.sampler"
    sampler = make(spec.sampler, what="sampler", known=dict.fromkeys(KNOWN), where=key, running=running)
    check_call(sampler, CALLED_WITH, f"{key}: {spec.sampler}")
    return sampler
