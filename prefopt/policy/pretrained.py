"""Models with their weights, from folders, from the hub or given loaded: every weight comes from there, or is accounted for."""

import logging
import re
from collections.abc import Callable, Collection, Mapping
from copy import deepcopy
from typing import Any

import torch
from peft import PeftConfig, PeftModel
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    GenerationConfig,
    PretrainedConfig,
    PreTrainedModel,
)

from prefopt import recipe
from prefopt.policy import quantised, stacking
from prefopt.policy.adapters import adapter_weights, merged, with_adapter
from prefopt.policy.compat import ignore_renamed_checkpointing, switch_off_dropout
from prefopt.policy.finding import adapter_config, base_of, find_model, loaded
from prefopt.support.errors import PrefoptError, some_of
from prefopt.support.given import Given
from prefopt.support.sharing import shared, stamp

log = logging.getLogger(__name__)

Loader = Callable[..., PreTrainedModel | PeftModel]
"""`load_weights`, or another function of the same arguments."""


def load_weights(auto: Any, spec: recipe.Policy, **config: Any) -> PreTrainedModel | PeftModel:
    """A model of a recipe, by one of transformers' auto classes, with these changes to its configuration.

    An adapter is merged into the weights of its base, unless the recipe has those in 4 bits, where the sum would be rounded.

    Raises:
        PrefoptError: it cannot be loaded, or some of its weights are in no file; a classifier's head may start at random.
    """
    name = find_model(spec.model)
    model = loaded(name, "model", lambda: _model(auto, name, spec, config))
    _prepare(model, name, spec)
    return model


def load_unmerged(auto: Any, spec: recipe.Policy, **config: Any) -> PreTrainedModel | PeftModel:
    """The same, with an adapter beside the weights of its base, as it was trained and measured.

    Raises:
        PrefoptError: as `load_weights`.
    """
    name = find_model(spec.model)
    adapter = adapter_config(name)
    if adapter is None:
        return load_weights(auto, spec, **config)
    model: PeftModel = loaded(name, "model", lambda: _with_adapter(auto, name, adapter, spec, config))
    _prepare(model, name, spec)
    return model


def _prepare(model: Any, name: str, spec: recipe.Policy) -> None:
    """Ready for training: all weights are numbers, no dropout, checkpointing as the recipe says."""
    if wrong := next((key for key, weight in model.named_parameters() if not weight.isfinite().all()), None):
        raise PrefoptError(
            f"the weights of {name} hold NaN or infinite numbers, first in {wrong}: its training failed, or policy.dtype "
            f"{spec.dtype} is too small for them; take an earlier checkpoint, or another dtype"
        )
    switch_off_dropout(model)
    if spec.gradient_checkpointing:
        ignore_renamed_checkpointing()
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})


def fresh_weights(model: PreTrainedModel | PeftModel) -> frozenset[str]:
    """The weights of a loaded classifier that were in no file, and so started at random."""
    fresh: frozenset[str] = getattr(model, "fresh_weights", frozenset())
    return fresh


def without_dropout(config: Any) -> Any:
    """The configuration with every dropout at 0, so that policy and reference differ by their weights alone."""
    for name, value in list(vars(config).items()):
        if isinstance(value, PretrainedConfig):  # the text model of a multimodal one
            without_dropout(value)
        elif isinstance(value, float) and re.search(r"drop(out)?(_|$)", name):
            setattr(config, name, 0.0)
    return config


def _model(auto: Any, name: str, spec: recipe.Policy, changes: Mapping[str, Any]) -> PreTrainedModel | PeftModel:
    """From disk or the hub; of a model that is loaded already a copy, so that its owner's stays as it is."""
    if not isinstance(name, Given):
        return _from_folder(auto, name, spec, changes)
    model: Any = name.object
    suits = {
        AutoModelForCausalLM: model.can_generate(),
        AutoModelForSequenceClassification: type(model).__name__.endswith("ForSequenceClassification"),
    }
    if not suits.get(auto, True):
        raise PrefoptError(
            f"{name} is of class {type(model).__name__}, and {auto.__name__} makes others: load it with that"
        )
    if model.config.num_labels != changes.get("num_labels", model.config.num_labels):
        raise PrefoptError(f"{name} is a classifier with {model.config.num_labels} outputs; a scorer has one")
    model = deepcopy(model).to(getattr(torch, spec.dtype))
    for module in model.modules():
        without_dropout(module)
    model.name_or_path = ""  # it may have been changed since it was loaded, so an adapter is saved merged into it
    copied: PreTrainedModel = model
    return copied


def _from_folder(auto: Any, name: str, spec: recipe.Policy, changes: Mapping[str, Any]) -> PreTrainedModel | PeftModel:
    if (adapter := adapter_config(name)) is not None:
        # An adapter that was trained before is part of this run's starting point, and so of its reference.
        adapted = _with_adapter(auto, name, adapter, spec, changes)
        if spec.quantization is not None:
            return adapted
        remembered = stacking.beneath(adapted, adapter, getattr(adapted.get_base_model(), "adapter_beneath", None))
        whole: Any = merged(adapted)
        whole.adapter_beneath = remembered
        whole.name_or_path = ""  # these weights are nowhere on disk: an adapter on top is saved together with this one
        if quantised.recorded(name) is not None:
            whole.adapter_beneath = None  # its base, rounded as it was, is in no file
        if whole.dtype not in (torch.float32, torch.float64):
            log.warning(
                "the adapter %s is merged into weights of %s, which rounds them: numbers differ a little from those that its run "
                "measured; policy.dtype: float32 keeps them",
                name,
                spec.dtype,
            )
        result: PreTrainedModel = whole
        return result
    config = AutoConfig.from_pretrained(name, trust_remote_code=spec.remote_code)
    classifies = any("SequenceClassification" in architecture for architecture in config.architectures or ())
    if "num_labels" in changes and classifies and config.num_labels != changes["num_labels"]:
        raise PrefoptError(f"{name} is a classifier with {config.num_labels} outputs; a scorer has one")
    for key, value in changes.items():
        setattr(config, key, value)

    def made() -> PreTrainedModel:
        both: tuple[Any, dict[str, Any]] = auto.from_pretrained(
            name,
            config=without_dropout(config),
            dtype=getattr(torch, spec.dtype),
            attn_implementation=spec.attention,
            trust_remote_code=spec.remote_code,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # refused below, with the name of the weight
            **quantised.arguments_of(spec),
        )
        model, info = both
        _refuse_shapes(name, model, info["mismatched_keys"])
        _refuse_missing(name, model, info["missing_keys"], info["unexpected_keys"])
        model.fresh_weights = frozenset(info["missing_keys"])
        quantised.finish(model)
        return model

    if auto is not AutoModelForCausalLM:  # others may have randomly initialised parts
        return made()
    same = (stamp(name), spec.dtype, spec.attention, spec.remote_code, spec.quantization, *changes.items())
    return shared("models", same, made, copy=deepcopy)


def _with_adapter(
    auto: Any, name: str, adapter: PeftConfig, spec: recipe.Policy, changes: Mapping[str, Any]
) -> PeftModel:
    """An adapter on its base; an adapter that is the base is merged.

    A base that was quantised when the adapter was trained is so again, or has those rounded weights in its own dtype.
    """
    base, own = base_of(name, adapter), quantised.recorded(name)
    quantised.refuse_other(name, spec)
    if own is None or spec.quantization is not None:
        beneath: Any = _from_folder(auto, base, spec, changes)
    else:
        rounded: Any = _from_folder(auto, base, spec.model_copy(update=own), changes)
        beneath = quantised.dequantised(rounded).to(getattr(torch, spec.dtype))
    fresh = fresh_weights(beneath)
    model = with_adapter(beneath, name, adapter, fresh)
    beneath.fresh_weights = fresh - set(adapter_weights(name))
    _take_generation_settings(beneath, name)
    return model


def _refuse_shapes(name: str, model: PreTrainedModel, mismatched: Collection[Any]) -> None:
    for key, found, wanted in sorted(mismatched):
        raise PrefoptError(
            f"the weights of {name} do not fit its config.json: {key} is {list(found)} in the files, and {list(wanted)} of "
            f"{type(model).__name__} by the configuration ({len(mismatched)} weight{'s' * (len(mismatched) > 1)} in all): copy "
            "config.json and weights from one place"
        )


def _refuse_missing(name: str, model: PreTrainedModel, missing: Collection[str], unknown: Collection[str]) -> None:
    """Weights that are in no file would start at random; only the head of a classifier, and a pooling layer, may."""
    inside = f"{model.base_model_prefix}."
    has_head = any(key.startswith(inside) for key, _ in model.named_parameters())
    may = type(model).__name__.endswith("ForSequenceClassification") or not has_head
    lost = sorted(
        key for key in missing if not (may and ("pooler" in key or (has_head and not key.startswith(inside))))
    )
    if not lost:
        return
    others = f" The files hold {some_of(sorted(unknown))}, for which it has no place." if unknown else ""
    prefix = _prefix(lost, unknown)
    remedy = (
        f"take {prefix!r} off the names of the weights" if prefix else "copy the files anew from where they were saved"
    )
    raise PrefoptError(
        f"the weights of {name} are not whole: {type(model).__name__} finds none for {some_of(lost)}, which would start at "
        f"random.{others} Save the model again with save_pretrained, or {remedy}"
    )


def _prefix(lost: Collection[str], unknown: Collection[str]) -> str:
    """What the names in the files begin with and the model's do not, as `torch.compile` and some trainers write them."""
    for key in unknown:
        for name in lost:
            if key.endswith(f".{name}"):
                return key.removesuffix(name)
    return ""


def _take_generation_settings(model: Any, name: str) -> None:
    """An adapter's own generation settings, where it has some: they say where completions end."""
    if not model.can_generate():
        return
    try:
        model.generation_config = GenerationConfig.from_pretrained(name)
    except OSError:  # those of its base
        return
