"""Two LoRA adapters as one: what was trained on top of an adapter is saved with it, on the base that both have on disk."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model_state_dict
from peft.tuners.lora import Embedding, Linear, LoraLayer
from safetensors.torch import save_file
from torch import Tensor

from prefopt.policy.adapters import WEIGHTS

Update = tuple[Tensor, Tensor]
"""Of one layer: A [r, in] and B [out, r] with the scale in it, so that W + BA is the layer's weight."""


@dataclass(frozen=True)
class Beneath:
    """A LoRA adapter that was merged when its model was loaded.

    Attributes:
        base: the name of the model below it.
        updates: of each layer that it adapts.
    """

    base: str
    updates: Mapping[str, Update]


def updates_of(model: PeftModel) -> dict[str, Update] | None:
    """What an adapter adds to each layer, copied; None where it is more than a product of two matrices for each."""
    config = model.peft_config["default"]
    if not isinstance(config, LoraConfig) or _further(config):
        return None
    layers = {n: layer for n, layer in model.get_base_model().named_modules() if isinstance(layer, LoraLayer)}
    if any(type(layer) not in (Linear, Embedding) for layer in layers.values()):
        return None
    return {name: _update(layer) for name, layer in layers.items()}


def _further(config: LoraConfig) -> bool:
    """Whether a LoRA adapter holds more than its matrices, layers that it holds whole apart."""
    names = (
        "use_dora",
        "lora_bias",
        "trainable_token_indices",
        "target_parameters",
        "layer_replication",
        "alora_invocation_tokens",
    )
    return config.bias != "none" or any(getattr(config, name, None) for name in names)


@torch.no_grad()
def _update(layer: Any) -> Update:
    if isinstance(layer, Embedding):
        first, second = layer.lora_embedding_A["default"], layer.lora_embedding_B["default"]
    else:
        first, second = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    return first.detach().cpu().clone(), (second * layer.scaling["default"]).detach().cpu().clone()


def beneath(model: PeftModel, config: PeftConfig, lower: Beneath | None) -> Beneath | None:
    """What is remembered of an adapter before it is merged; None where it could not be part of one saved on top.

    Args:
        model: with the adapter.
        config: of the adapter.
        lower: of another adapter below it, as older versions wrote them.
    """
    updates = None if getattr(config, "modules_to_save", None) else updates_of(model)
    if updates is None:
        return None
    if lower is None:
        return Beneath(str(config.base_model_name_or_path), updates)
    return Beneath(lower.base, stacked(lower.updates, updates))


def stacked(lower: Mapping[str, Update], upper: Mapping[str, Update]) -> dict[str, Update]:
    """The sum of two updates of each layer, BA + B'A' = [B B'] [A; A']."""
    both: dict[str, Update] = {**lower, **upper}
    for name in lower.keys() & upper.keys():
        (a, b), (further_a, further_b) = lower[name], upper[name]
        both[name] = (torch.cat([a.to(further_a.dtype), further_a]), torch.cat([b.to(further_b.dtype), further_b], 1))
    return both


def save_stacked(model: PeftModel, lower: Beneath, folder: Path) -> bool:
    """Save an adapter together with the one that was merged below it; False where they are no sum of products.

    Args:
        model: with the adapter that was trained.
        lower: the adapter below it.
        folder: where to.
    """
    own: Any = model.peft_config["default"]
    upper = updates_of(model)
    if upper is None:
        return False
    updates = stacked(lower.updates, upper)
    ranks = {name: len(a) for name, (a, _) in updates.items()}
    most = max(ranks.values())
    pattern = {name: rank for name, rank in ranks.items() if rank != most}
    config = LoraConfig(
        base_model_name_or_path=lower.base,
        task_type=own.task_type,
        r=most,
        lora_alpha=most,  # the scales are in the matrices
        rank_pattern=pattern,
        alpha_pattern=pattern,
        target_modules=sorted(updates),
        modules_to_save=own.modules_to_save,
        fan_in_fan_out=own.fan_in_fan_out,
        inference_mode=True,
    )
    weights = {
        key: value
        for key, value in get_peft_model_state_dict(model, save_embedding_layers=False).items()
        if ".lora_" not in key
    }
    layers = dict(model.get_base_model().named_modules())
    for name, (a, b) in updates.items():
        embeds = isinstance(layers[name], Embedding | torch.nn.Embedding)
        ending = ("lora_embedding_A", "lora_embedding_B") if embeds else ("lora_A.weight", "lora_B.weight")
        weights |= {f"base_model.model.{name}.{end}": part for end, part in zip(ending, (a, b), strict=True)}
    folder.mkdir(parents=True, exist_ok=True)
    save_file({key: value.contiguous().cpu() for key, value in weights.items()}, folder / WEIGHTS[0], {"format": "pt"})
    config.save_pretrained(str(folder))
    return True
