"""The settings by which a model computes: two models of equal weights and other settings are two models."""

from collections.abc import Iterator, Mapping
from typing import Any

from peft import PeftModel
from torch import nn
from transformers import PreTrainedModel

from prefopt.support.json_values import json_values

APART = (
    *("transformers_version", "peft_version", "dtype", "torch_dtype", "use_cache", "architectures", "inference_mode"),
    *("base_model_name_or_path", "revision", "auto_mapping", "task_type"),
)
"""Settings that say where a model is from, by what it was written or how it is held, and no number of it comes from them."""


def configuration(model: nn.Module) -> dict[str, Any]:
    """What the outermost Hugging Face model in a module computes by, as JSON holds it; nothing where there is none.

    Args:
        model: a policy, a scorer, or any other module.

    Returns:
        Dotted keys of `config`, of the `adapter` over it, and the end tokens of its generation settings.
    """
    adapter: dict[str, Any] = {}
    for module in model.modules():
        if isinstance(module, PeftModel):
            adapter = {"adapter": module.peft_config["default"].to_dict()}
        elif isinstance(module, PreTrainedModel):
            settings = getattr(module, "generation_config", None)  # a scorer has none
            ends = {} if settings is None else {"generation": {"eos_token_id": settings.eos_token_id}}
            sections = module.config.to_dict() | adapter | ends
            return dict(_flat(sections))
    return {}


def _flat(section: Mapping[Any, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys with their values, since a version of transformers may add settings to a section."""
    for key, value in section.items():
        if str(key).startswith("_") or key in APART:
            continue
        if isinstance(value, Mapping):
            yield from _flat(value, f"{above}{key}.")
        else:
            yield f"{above}{key}", sorted(value) if isinstance(value, set) else json_values(value)
