"""Models whose linear layers are held in 4 bits, under an adapter (QLoRA, arXiv 2305.14314), through bitsandbytes.

What is quantised is every linear layer but the head: blocks of 64 weights, each the nearest of 16 levels times the block's largest.
They are frozen, and become numbers of `policy.dtype` again wherever they are multiplied. An adapter that was trained on such a
model belongs to these rounded weights. Its folder says so (`quantization_config.json`), so that it is read on them again.
"""

import json
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import nn
from transformers import BitsAndBytesConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from prefopt import recipe
from prefopt.policy.compat import keep_packing_of
from prefopt.policy.finding import adapter_config, base_of, find_model
from prefopt.support.downloads import is_awaited
from prefopt.support.errors import PrefoptError
from prefopt.support.files import write_whole
from prefopt.support.given import Given

RECORD = "quantization_config.json"
"""Beside an adapter: the arguments of transformers' BitsAndBytesConfig under which its base was held while it was trained."""

MISSING = "policy.quantization needs bitsandbytes: pip install 'prefopt-research[bitsandbytes]'"


def check_quantised(spec: recipe.Policy) -> None:
    """Refuse, by configurations alone, what bitsandbytes cannot hold in 4 bits.

    Raises:
        PrefoptError: says what, and what to do instead.
    """
    if spec.quantization is None:
        return
    if find_spec("bitsandbytes") is None:
        raise PrefoptError(MISSING)
    for what in _refused(spec):
        raise PrefoptError(f"policy.quantization: {what}")


def _refused(spec: recipe.Policy) -> Iterator[str]:
    if spec.dtype == "float64":
        yield "weights in 4 bits are multiplied in 32 bits at most: write policy.dtype: float32, bfloat16 or float16"
    own = spec.adapter
    if own is not None and not isinstance(own, recipe.Adapter) and own.method.upper() != "LORA":
        yield f"of adapters only LoRA is trained on weights in 4 bits, not {own.method}: leave out policy.adapter.method"
    name = find_model(spec.model)
    if isinstance(name, Given):
        yield f"{name} is loaded already: name its folder or hub id, which is quantised while it is read"
    elif not is_awaited(name) and (adapter := adapter_config(name)) is not None:
        refuse_other(name, spec)
        base = base_of(name, adapter)
        if own is not None or (not is_awaited(base) and adapter_config(base) is not None):
            yield (
                f"{name} is an adapter, into whose base in 4 bits {'it' if own is not None else 'the one below it'} would be "
                f"merged: write whole weights (`prefopt export {name} FOLDER`), and begin from FOLDER"
            )


def arguments_of(spec: recipe.Policy) -> dict[str, Any]:
    """What `from_pretrained` is given so that it quantises what it reads; nothing where a recipe does not ask for it.

    Raises:
        PrefoptError: bitsandbytes is not installed.
    """
    if spec.quantization is None:
        return {}
    if find_spec("bitsandbytes") is None:
        raise PrefoptError(MISSING)
    config = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=spec.quantization.type,
        bnb_4bit_use_double_quant=spec.quantization.double,
        bnb_4bit_compute_dtype=getattr(torch, spec.dtype),
    )
    return {
        "quantization_config": config,
        "device_map": {"": "cpu"},
    }  # as others are loaded, so that levels are the same


def finish(model: PreTrainedModel) -> None:
    """See to it that a model that was just loaded computes alike in training and in evaluation.

    Raises:
        PrefoptError: a weight that started at random was quantised, and would stay as it is.
    """
    quantised = dict(_quantised(model))
    for layer in quantised.values():
        keep_packing_of(layer)
    fresh: frozenset[str] = getattr(model, "fresh_weights", frozenset())
    if lost := sorted(name for name in fresh if name.rpartition(".")[0] in quantised):
        raise PrefoptError(
            f"policy.quantization: {lost[0]} of {type(model).__name__} would start at random and stay so, in 4 bits: leave "
            "policy.quantization out"
        )


def is_quantised(model: nn.Module) -> bool:
    """Whether it has layers in 4 bits."""
    return any(True for _ in _quantised(model))


def record(model: PeftModel, folder: Path) -> None:
    """Write beside an adapter how its base is quantised, where it is."""
    config: Any = getattr(model.get_base_model().config, "quantization_config", None)
    if config is not None:
        write_whole(folder / RECORD, json.dumps(config.to_dict(), indent=2, sort_keys=True) + "\n")


def recorded(name: str) -> dict[str, Any] | None:
    """`quantization` and `dtype` of a recipe's policy, as the base of an adapter was held while it was trained; None if whole.

    Raises:
        PrefoptError: the file is damaged.
    """
    file = Path(name) / RECORD
    if not file.is_file():
        return None
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        own = recipe.Quantization(type=content["bnb_4bit_quant_type"], double=content["bnb_4bit_use_double_quant"])
        return {"quantization": own, "dtype": str(content["bnb_4bit_compute_dtype"])}
    except (ValueError, KeyError, TypeError) as error:
        raise PrefoptError(f"{file} is damaged ({error}): copy it from where the adapter was saved") from error


def refuse_other(name: str, spec: recipe.Policy) -> None:
    """An adapter is read on the levels that it was trained on.

    Raises:
        PrefoptError: a recipe asks for others.
    """
    own = recorded(name)
    if own is not None and spec.quantization not in (None, own["quantization"]):
        raise PrefoptError(
            f"policy.quantization: the adapter {name} was trained on a base of {_words(own['quantization'])}, and the recipe has "
            f"{_words(spec.quantization)}: write `quantization: {{type: {own['quantization'].type}, double: "
            f"{str(own['quantization'].double).lower()}}}`, or leave it out"
        )


def _words(quantization: recipe.Quantization | None) -> str:
    assert quantization is not None
    return f"{quantization.type}{'' if quantization.double else ' without double'}"


@torch.no_grad()
def dequantised(model: PreTrainedModel) -> PreTrainedModel:
    """The same model with ordinary layers, which hold the rounded weights in the dtype that they were multiplied in."""
    from bitsandbytes.functional import dequantize_4bit

    for name, layer in list(_quantised(model)):
        weight = dequantize_4bit(layer.weight.data, layer.weight.quant_state)
        turned = layer.source_cls is Conv1D  # GPT-2's, whose weights lie the other way
        with torch.device("meta"):
            plain: Any = (
                Conv1D(layer.out_features, layer.in_features)
                if turned
                else nn.Linear(layer.in_features, layer.out_features, bias=False)
            )
        plain.weight = nn.Parameter(weight.T.contiguous() if turned else weight)
        plain.bias = layer.bias
        model.set_submodule(name, plain)
    quantizer: Any = model.hf_quantizer
    quantizer.remove_quantization_config(model)
    whole: Any = model
    whole.is_loaded_in_4bit = False
    return model


def _quantised(model: nn.Module) -> Iterator[tuple[str, Any]]:
    if find_spec("bitsandbytes") is None:
        return
    from bitsandbytes.nn import Linear4bit

    yield from ((name, module) for name, module in model.named_modules() if isinstance(module, Linear4bit))
