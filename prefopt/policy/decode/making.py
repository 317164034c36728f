"""From the name in a recipe to a sampler."""

from collections.abc import Mapping
from typing import Any

from accelerate import Accelerator

from prefopt import recipe
from prefopt.policy.decode.ends import one_token
from prefopt.policy.decode.sampler import TransformersSampler
from prefopt.policy.decode.vllm import VLLMSampler
from prefopt.policy.decode.vllm_server import ADAPTER_START, START, check_address
from prefopt.policy.finding import find_model
from prefopt.policy.loading import load_tokenizer
from prefopt.policy.policy import Policy
from prefopt.support.downloads import is_awaited
from prefopt.support.errors import PrefoptError
from prefopt.support.plugins import LATER, check_call, find, make
from prefopt.types import Refusing, Sampler

KNOWN = {"transformers": TransformersSampler, "vllm": VLLMSampler}

ASKED = ("accelerator", "policy", "tokenizer", "settings", "server")
"""What the constructor of a sampler can ask for, by parameter name."""

CALLED_WITH = ("model", "prompt_ids", "completions", "settings", "seeds")
"""What every sampler is called with."""


def check_sampler(spec: recipe.Samples, where: str = "source.rollouts", settings: recipe.Section | None = None) -> None:
    """Refuse what `make_sampler` would, as far as that can be known without a model.

    Args:
        spec: the section that names it.
        where: the section's key, for messages.
        settings: the whole recipe, which a sampler may refuse; None does not ask it.

    Raises:
        PrefoptError: an unknown name, a server that is not named or that nothing would ask, or a sampler that cannot
            serve the recipe.
    """
    if spec.sampler not in KNOWN:
        _own(spec, dict.fromkeys(ASKED, LATER), where)
    kind = find(spec.sampler, "sampler", known=KNOWN, where=f"{where}.sampler")
    if settings is not None and isinstance(kind, Refusing) and (reason := kind.refuses(settings)):
        raise PrefoptError(f"{where}.sampler is {spec.sampler}: {reason}")
    if spec.sampler == "vllm":
        if spec.server is None:
            policy = None if settings is None else getattr(settings, "policy", None)
            start = START if policy is None or policy.adapter is None else ADAPTER_START
            raise PrefoptError(f"{where}.sampler is vllm, and {where}.server is not given: {start}")
        check_address(spec.server, f"{where}.server")
    elif spec.sampler == "transformers" and spec.server is not None:
        raise PrefoptError(
            f"{where}.server is {spec.server}, and {where}.sampler is transformers, which asks no server: write {where}.sampler: "
            "vllm, or leave the server out"
        )


def check_stops(spec: recipe.Samples, policy: recipe.Policy, where: str = "source.rollouts") -> None:
    """Refuse a text that is to end completions and is not a single token. Reads the tokenizer where there is such a text.

    Args:
        spec: the section that names them.
        policy: which will write.
        where: the section's key, for messages.

    Raises:
        PrefoptError: names the text.
    """
    if not spec.sampling.stop or is_awaited(find_model(policy.model)):
        return
    tokenizer = load_tokenizer(policy)
    for text in spec.sampling.stop:
        one_token(tokenizer, text, f"{where}.sampling")


def make_sampler(
    spec: recipe.Samples, accelerator: Accelerator, where: str = "source.rollouts", policy: Policy | None = None
) -> Sampler:
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
    running = {"accelerator": accelerator, "policy": policy, "tokenizer": tokenizer, "settings": spec}
    return _own(spec, running | {"server": spec.server}, where)


def _own(spec: recipe.Samples, running: Mapping[str, Any], where: str) -> Sampler:
    key = f"{where}.sampler"
    sampler: Sampler = make(spec.sampler, what="sampler", known=KNOWN, where=key, running=running)
    check_call(sampler, CALLED_WITH, f"{key}: {spec.sampler}")
    return sampler
