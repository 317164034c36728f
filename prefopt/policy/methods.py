"""A recipe's adapter as a configuration of peft: which of its methods can be trained here, and which cannot, and why."""

import dataclasses
from typing import Any

from peft import PEFT_TYPE_TO_CONFIG_MAPPING, LoraConfig, PeftConfig

from prefopt import recipe
from prefopt.support.errors import PrefoptError, nearest

TOKENS = "it puts tokens of its own before a text or gates beside it, so no weights are what is learnt, and none can be merged"
TASKS = "it asks for the number of a task with every row"
STEPS = "its trainer must tell it after every update to deal its budget out anew, and add a loss of its own"
UNMERGED = "peft cannot merge it into weights, which exports, later stages and reward models are made of"
START = "it never starts as its base, so the policy at step 0 would not be the reference"

REFUSED: dict[str, str] = {
    "ADALORA": STEPS,
    "ADAPTION_PROMPT": TOKENS,
    "BEFT": "it trains biases, which most of these models lack, and peft cannot merge one into a layer without",
    "CARTRIDGE": TOKENS,
    "CPT": TOKENS,
    "LILY": UNMERGED,
    "MULTITASK_PROMPT_TUNING": TOKENS,
    "P_TUNING": TOKENS,
    "POLY": TASKS,
    "PREFIX_TUNING": TOKENS,
    "PROMPT_TUNING": TOKENS,
    "SHADOW": UNMERGED,
    "UNILORA": START,
    "VBLORA": START,
    "XLORA": "it weighs adapters that are trained already; name one of them in policy.model",
}
"""Methods of peft 0.21 that are not trained here."""


def methods() -> dict[str, Any]:
    """The configuration class of each of peft's methods, by its name there."""
    return {str(getattr(kind, "value", kind)): cls for kind, cls in PEFT_TYPE_TO_CONFIG_MAPPING.items()}


def adapter_settings(spec: recipe.AnyAdapter, task: str, **more: Any) -> PeftConfig:
    """The configuration for peft.

    Args:
        spec: the recipe's adapter.
        task: peft's name for what the model does.
        more: further fields; lists of modules are added to the recipe's, and None leaves a field as it is.

    Raises:
        PrefoptError: a method or field that there is not, a method that cannot be trained here, or a value that cannot be.
    """
    kind, fields = _lora(spec) if isinstance(spec, recipe.Adapter) else _other(spec)
    known = {field.name for field in dataclasses.fields(kind) if field.init}
    for name, value in more.items():
        if value is None:
            continue
        if name not in known:
            raise PrefoptError(
                f"policy.adapter: {_name(spec)} has no {name}, which a reward model's head needs: take LoRA"
            )
        fields[name] = [*(fields.get(name) or ()), *value] if isinstance(value, list) else value
    try:
        config: PeftConfig = kind(task_type=task, **fields)
    except (TypeError, ValueError, ImportError) as error:
        raise PrefoptError(f"policy.adapter: {_name(spec)}: {error}") from error
    if getattr(config, "use_asa", False):
        raise PrefoptError(f"policy.adapter: {_name(spec)} with use_asa cannot be trained here: {STEPS}")
    return config


def _lora(spec: recipe.Adapter) -> tuple[type[LoraConfig], dict[str, Any]]:
    return LoraConfig, {
        "r": spec.r,
        "lora_alpha": spec.alpha,
        "lora_dropout": spec.dropout,
        "use_dora": spec.dora,
        "target_modules": spec.targets if isinstance(spec.targets, str) else list(spec.targets),
        "modules_to_save": list(spec.modules_to_save) or None,
    }


def _other(spec: recipe.Method) -> tuple[Any, dict[str, Any]]:
    known = methods()
    name = spec.method.upper().replace("-", "_")
    if name not in known:
        usable = ", ".join(sorted(known.keys() - REFUSED.keys()))
        raise PrefoptError(
            f"policy.adapter.method: unknown method {spec.method!r}.{nearest(name, known)} Known: {usable}"
        )
    if name in REFUSED:
        raise PrefoptError(
            f"policy.adapter.method: {spec.method} of peft cannot be trained here: {REFUSED[name]}. LoRA can, and docs/models.md "
            "lists what else"
        )
    own = {field.name for field in dataclasses.fields(known[name]) if field.init} - {"task_type", "peft_type"}
    for field in spec.fields:
        if field not in own:
            raise PrefoptError(f"policy.adapter: {spec.method} of peft has no field {field!r}.{nearest(field, own)}")
    return known[name], spec.fields


def _name(spec: recipe.AnyAdapter) -> str:
    return "LoRA" if isinstance(spec, recipe.Adapter) else spec.method


def is_random(config: PeftConfig) -> bool:
    """Whether an adapter draws noise while it is trained: a dropout of whatever name, or PVeRA, which samples its vectors."""
    dropouts = [value for name, value in vars(config).items() if "dropout" in name and isinstance(value, float | int)]
    return any(dropouts) or str(getattr(config.peft_type, "value", config.peft_type)) == "PVERA"
