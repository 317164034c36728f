"""Adapters of peft: reading those that were trained before, merging them, and fresh ones to be trained."""

import re
import warnings
from collections.abc import Collection, Mapping
from copy import copy
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import load_peft_weights
from torch import Tensor, nn
from transformers import PreTrainedModel

from prefopt import recipe
from prefopt.policy.compat import ignore_renamed_checkpointing
from prefopt.policy.finding import find_model, loaded
from prefopt.policy.methods import adapter_settings
from prefopt.support.errors import PrefoptError, some_of
from prefopt.support.given import Given
from prefopt.support.seeds import seed_for

EXPECTED = (
    "fan_in_fan_out is set to False",  # peft sets it by itself
    "Model has `tie_word_embeddings=True`",  # merging unties them
    "The following (rank|alpha)_pattern keys did not match",  # of experts that an architecture names otherwise
)
"""What peft 0.21 warns of where nothing is wrong."""

WHOLE = re.compile(r"\.(base_layer|original_module|modules_to_save)(?=\.)")
"""What peft puts into the name of a weight of the model that an adapter holds (peft 0.21)."""

WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
"""The files in which peft looks for an adapter's weights."""

MAGNITUDE = "lora_magnitude_vector"
"""What DoRA adds. Followed by `.weight` in a file, peft 0.21 and transformers 5.23 both read it; without, as peft writes it,
transformers takes it for a weight that it does not know, and starts from fresh magnitudes."""

INSIDE = "base_model.model."
"""What the names of the model's weights begin with in an adapter's file."""


def adapter_weights(name: str) -> Collection[str]:
    """The names of the model's weights that an adapter holds whole, such as a head.

    Raises:
        PrefoptError: the file is damaged.
    """
    if not _has_weights(name):
        return ()
    return {weight.removeprefix(INSIDE) for weight in _weights(name) if ".lora_" not in weight}


def _has_weights(name: str) -> bool:
    return not Path(name).is_dir() or any((Path(name) / file).is_file() for file in WEIGHTS)


def _weights(name: str) -> dict[str, Tensor]:
    if not _has_weights(name):
        raise PrefoptError(f"the adapter {name} has no weights: copy {WEIGHTS[0]} from where it was saved")
    weights: dict[str, Tensor] = loaded(name, "adapter", lambda: load_peft_weights(name, device="cpu"))
    return {key.replace(f"{MAGNITUDE}.weight", MAGNITUDE): weight for key, weight in weights.items()}


def with_adapter(beneath: PreTrainedModel, name: str, config: PeftConfig, fresh: Collection[str] = ()) -> PeftModel:
    """A model with an adapter that was trained before; its embeddings grow to those that the adapter holds.

    Args:
        beneath: the adapter's base, which is changed.
        name: folder or hub id of the adapter.
        config: its configuration.
        fresh: weights of the base that started at random, such as a new head, which the adapter need not hold.

    Raises:
        PrefoptError: it is of a kind that is not a change of weights, or its weights and the model's do not fit together.
    """
    kind = getattr(config.peft_type, "value", config.peft_type)
    if config.is_prompt_learning or config.is_adaption_prompt:
        raise PrefoptError(
            f"the adapter {name} is of the kind {kind}, which adds tokens or gates and cannot be merged into weights: name an "
            "adapter that changes weights (LoRA, DoRA, IA3, OFT, …), or the model below it"
        )
    if getattr(config, "layer_replication", None):  # peft 0.21 means to refuse it, and merges into the shared weights
        raise PrefoptError(
            f"the adapter {name} repeats layers of its base (layer_replication), which share their weights, so it cannot be merged "
            "into them: name a base that has these layers, and an adapter of that"
        )
    if config.task_type == "CAUSAL_LM" and not beneath.can_generate():
        config = copy(config)  # of a policy, on a reward model that starts from it
        config.task_type = None
    weights = _weights(name)
    _grow(beneath, weights, name)
    own = set(beneath.state_dict())
    ignore_renamed_checkpointing()
    with warnings.catch_warnings():  # what peft warns of is an error below
        for known in ("Found missing adapter keys", *EXPECTED):
            warnings.filterwarnings("ignore", known)
        model = _attached(beneath, name, config)
    expected = set(get_peft_model_state_dict(model, save_embedding_layers=False))
    missing = [bare for key in sorted(expected - set(weights)) if (bare := key.removeprefix(INSIDE)) not in fresh]
    unknown = [
        bare for key in sorted(set(weights) - expected) if WHOLE.sub("", bare := key.removeprefix(INSIDE)) not in own
    ]
    if missing or unknown:
        what = f"has no weights {some_of(missing, 2)}" if missing else "fits in part only"
        further = f", and holds {some_of(unknown, 2)}, which this model has no place for" if unknown else ""
        raise PrefoptError(
            f"the adapter {name} {what}{further}: it belongs to another model, or its weights were renamed; name the base that "
            "it was trained on in its adapter_config.json, and weights as peft's save_pretrained writes them"
        )
    return model


def _attached(beneath: PreTrainedModel, name: str, config: PeftConfig) -> PeftModel:
    try:
        return PeftModel.from_pretrained(beneath, name, config=config)
    except RuntimeError as error:
        size = next((line.strip() for line in str(error).splitlines() if "size mismatch" in line), None)
        if size is None:
            raise
        raise PrefoptError(
            f"the weights of the adapter {name} do not fit its adapter_config.json or its base: {size}; copy both files from one "
            "place, and name the base that it was trained on"
        ) from error


def _grow(model: PreTrainedModel, weights: Mapping[str, Tensor], name: str) -> None:
    """Give the embeddings as many rows as those that an adapter holds, where tokens were added before it was trained."""
    every: tuple[Any, ...] = (model.get_input_embeddings(), model.get_output_embeddings())
    layers = [layer for layer in every if layer is not None]
    names = {module: place for place, module in model.named_modules() if any(module is layer for layer in layers)}
    before = layers[0].weight.shape[0]
    sizes = {
        layer: len(weight)
        for layer in layers
        for key, weight in weights.items()
        if key.startswith(f"{INSIDE}{names[layer]}.")
        and key.endswith(".weight")
        and "lora" not in key
        and weight.shape[1:] == layer.weight.shape[1:]
    }
    rows = next(iter(set(sizes.values()) - {before}), None)
    if rows is None:
        return
    tied = len({id(layer.weight) for layer in layers}) == 1
    if rows > before and len(sizes) < len(layers) and not tied:
        raise PrefoptError(
            f"the adapter {name} was trained with {rows} tokens, its base has {before}, and the adapter holds only a part of the "
            "further rows: train it with modules_to_save of the embedding and the head, or add the tokens to the base"
        )
    model.resize_token_embeddings(rows, mean_resizing=False)


def merged(model: PeftModel) -> PreTrainedModel:
    """The model with its adapter merged into the weights, which are changed.

    Where embedding and head share a weight and one of them is adapted, they no longer share it: the other stays as it was.
    """
    base: Any = model.get_base_model()
    embedding, head = base.get_input_embeddings(), base.get_output_embeddings()
    if head is not None and any(isinstance(layer, BaseTunerLayer) for layer in (embedding, head)):
        plain: list[Any] = [
            layer.get_base_layer() if isinstance(layer, BaseTunerLayer) else layer for layer in (embedding, head)
        ]
        if plain[0].weight is plain[1].weight:
            plain[1].weight = nn.Parameter(plain[1].weight.detach().clone())
            base.config.tie_word_embeddings = base.config.get_text_config().tie_word_embeddings = False
    result: Any = model
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Input and output embeddings are no longer tied")  # as they are meant to be
        whole: PreTrainedModel = result.merge_and_unload()
    return whole.requires_grad_(True)  # peft froze it


def adapted(
    model: PreTrainedModel, spec: recipe.Policy, seed: int, task: str, **more: Any
) -> PreTrainedModel | PeftModel:
    """With a fresh adapter where the recipe asks for one.

    Args:
        model: of the recipe.
        spec: says whether there is an adapter.
        seed: of its weights.
        task: peft's name for what the model does.
        more: further fields of peft's configuration.

    Raises:
        PrefoptError: peft has no such method or field, its targets are not in the model, it does not start as its base, or it
            could not be saved as it is measured.
    """
    if spec.adapter is None:
        return model
    _refuse_rounding(model, spec)
    ignore_renamed_checkpointing()
    config = adapter_settings(spec.adapter, task, **more)
    expected = None if isinstance(spec.adapter, recipe.Adapter) else _answers(model)
    with torch.random.fork_rng(), warnings.catch_warnings():
        torch.manual_seed(seed_for(seed, "init"))
        for known in EXPECTED:
            warnings.filterwarnings("ignore", known)
        try:
            whole = get_peft_model(model, config)
        except (ValueError, TypeError, RuntimeError, AttributeError, NotImplementedError) as error:
            layers = {name.rpartition(".")[2] for name, layer in model.named_modules() if isinstance(layer, nn.Linear)}
            known = f" Linear layers of this model: {', '.join(sorted(layers))}" if "not found" in str(error) else ""
            raise PrefoptError(f"policy.adapter: {error}{known}") from error
    if expected is not None:
        _refuse_other_start(whole, expected, spec.adapter)
    return whole


@torch.no_grad()
def _answers(model: Any) -> Tensor:
    """What a model says of a few tokens, [1, 8, …] in fp32."""
    training = model.training
    rows = model.get_input_embeddings().weight.shape[0]
    ids = torch.arange(1, 9, device=model.device)[None] * 7 % rows
    with torch.random.fork_rng():
        logits: Tensor = model.eval()(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
    model.train(training)
    return logits.float()


def _refuse_other_start(model: PeftModel, expected: Tensor, spec: Any) -> None:
    """A fresh adapter must say what its base says, switched on and off: the reference is the model without it."""
    tolerance = 64 * torch.finfo(next(model.parameters()).dtype).eps * max(expected.abs().max().item(), 1.0)
    with model.disable_adapter():
        off = (_answers(model) - expected).abs().max().item()
    on = (_answers(model) - expected).abs().max().item()
    if not max(on, off) <= tolerance:
        which = "switched off it" if not off <= tolerance else "it"
        raise PrefoptError(
            f"policy.adapter: {spec.method} with these settings: {which} does not start as its base (logits differ by "
            f"{max(on, off):.1g}), so the reference would not be the policy at step 0. Take settings under which it does "
            "(often `init_weights: true`), or another method"
        )


def _refuse_rounding(model: PreTrainedModel, spec: recipe.Policy) -> None:
    """An adapter on weights that are nowhere on disk is saved merged, which in 16 bits would round what was measured."""
    if model.name_or_path or model.dtype in (torch.float32, torch.float64):
        return
    name = find_model(spec.model)
    first = (
        "save it with save_pretrained and name its folder"
        if isinstance(name, Given)
        else f"run `prefopt export {name} FOLDER` and start from FOLDER"
    )
    what = "a loaded model" if isinstance(name, Given) else "an adapter"
    raise PrefoptError(
        f"policy.adapter on {name}, {what}: the new adapter would be saved merged into weights of {spec.dtype}, whose rounding "
        f"changes what was measured. {first[0].upper()}{first[1:]}, or set policy.dtype to float32 (train.precision: bf16 keeps "
        "the arithmetic)"
    )
