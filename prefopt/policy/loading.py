"""Loading the models and tokenizers that a recipe names."""

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from copy import deepcopy
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

import torch
from huggingface_hub import model_info, try_to_load_from_cache
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from prefopt import recipe
from prefopt.policy.compat import ignore_renamed_checkpointing, switch_off_dropout
from prefopt.policy.critic import Critic, ValueHead
from prefopt.policy.policy import CRITIC, Policy
from prefopt.support.downloads import HUB_ID, note_model
from prefopt.support.errors import PrefoptError
from prefopt.support.given import Given, refuse_text_of_object
from prefopt.support.out_of_memory import LOADING, advising
from prefopt.support.seeds import seed_for
from prefopt.support.sharing import shared, stamp

T = TypeVar("T")

ADAPTER = "adapter_model.safetensors"

HOW_TO_GET_A_MODEL = (
    "give a folder with config.json and weights (from save_pretrained), a finished run folder, "
    "or a hub id such as HuggingFaceTB/SmolLM2-135M-Instruct; ${pocket} is the small model that comes with prefopt"
)


def find_model(names: Sequence[str]) -> str:
    """The first of these models that is available: a folder, a run folder's `policy/`, or a hub id. Loads nothing.

    Raises:
        PrefoptError: none is on disk, and the hub has none or cannot be reached; says how to get one.
    """
    for name in names:
        refuse_text_of_object(name)
        if isinstance(name, Given):
            if not isinstance(name.object, PreTrainedModel):
                raise PrefoptError(f"{name} is no model of transformers: {HOW_TO_GET_A_MODEL}")
            return name
        folder = Path(name).expanduser()
        for place in (folder / "policy", folder):
            if (place / "config.json").is_file() or (place / "adapter_config.json").is_file():
                return str(place.absolute())  # absolute, because an adapter stores it as the name of its base
    hub = [n for n in names if HUB_ID.fullmatch(n) and not Path(n).expanduser().exists()]
    if hub:
        cached = next((name for name in hub if _cached(name)), None)
        return cached or (hub[0] if note_model(hub[0]) else _on_hub(hub[0]))
    raise PrefoptError(f"no model at {' or '.join(names)}: {HOW_TO_GET_A_MODEL}")


def load_tokenizer(spec: recipe.Policy) -> PreTrainedTokenizerBase:
    """The policy's tokenizer.

    Raises:
        PrefoptError: there is none, or it cannot be loaded.
    """
    name = spec.tokenizer or find_model(spec.model)
    if isinstance(name, Given):
        return _given_tokenizer(name)
    tokenizer: PreTrainedTokenizerBase = loaded(
        name, "tokenizer", lambda: AutoTokenizer.from_pretrained(name, trust_remote_code=spec.remote_code)
    )
    # transformers 5.23 makes an empty tokenizer where a folder has a config.json and no files of a tokenizer.
    if not tokenizer.get_vocab().keys() - set(tokenizer.all_special_tokens):
        raise PrefoptError(
            f"{name} has no tokenizer: save one there (tokenizer.save_pretrained), or name one in policy.tokenizer"
        )
    return tokenizer


def _given_tokenizer(name: Given) -> PreTrainedTokenizerBase:
    if not isinstance(name.object, PreTrainedTokenizerBase):
        raise PrefoptError(f"{name} brings no tokenizer: give one in policy.tokenizer, by name or loaded")
    return name.object


def load_policy(spec: recipe.Policy, tokenizer: PreTrainedTokenizerBase, seed: int) -> Policy:
    """A causal LM, with a fresh adapter where the recipe asks for one.

    Raises:
        PrefoptError: it cannot be loaded, or an adapter's targets are not in it.
    """
    return Policy(adapted(load_weights(AutoModelForCausalLM, spec), spec, seed, "CAUSAL_LM"), tokenizer)


def load_critic(spec: recipe.Critic, policy: Policy, policy_spec: recipe.Policy) -> ValueHead | Critic:
    """The critic of a policy: a head on the policy's states, or a model that the recipe names with a new head.

    If the policy was saved with a critic of the same kind and size, that critic's weights are loaded.

    Raises:
        PrefoptError: the model cannot be loaded, reads in both directions, or does not share the policy's vocabulary.
    """
    critic = _new_critic(spec, policy, policy_spec)
    saved = Path(find_model(policy_spec.model)) / CRITIC
    state = load_file(saved) if saved.is_file() else {}
    if {n: v.shape for n, v in state.items()} == {n: v.shape for n, v in critic.state_dict().items()}:
        critic.load_state_dict(state)
    return critic


def _new_critic(spec: recipe.Critic, policy: Policy, policy_spec: recipe.Policy) -> ValueHead | Critic:
    if spec.model is None:
        return ValueHead(policy.causal.config.get_text_config().hidden_size, policy.causal.dtype)
    assert policy.tokenizer is not None
    own = policy_spec.model_copy(update={"model": spec.model, "adapter": None, "tokenizer": None})
    backbone = _scorers_backbone(own) if _is_scorers_adapter(find_model(spec.model)) else load_backbone(own, head=False)
    if not _reads_forwards(backbone):
        raise PrefoptError(
            f"the critic {find_model(spec.model)} reads in both directions, so its value of a token would have seen what follows: "
            "name a decoder in policy.critic.model, or leave it out for a head on the policy's own states"
        )
    check_vocabulary(backbone, own, policy.tokenizer, "the critic")
    return Critic(backbone).to(policy.device)


@torch.no_grad()
def _reads_forwards(backbone: PreTrainedModel) -> bool:
    """Whether the hidden state of a token does not depend on the tokens after it.

    A causal model computes both states by the same arithmetic, so they may differ by rounding alone. In a model that reads in both
    directions the difference can be small, above all before training (1e-3 in a random BERT), but in fp32 it is not rounding.
    """
    model: Any = backbone
    training = model.training
    follow = torch.tensor([[1, 2, 2, 2, 2, 2, 2, 2], [1, 3, 3, 3, 3, 3, 3, 3]], device=model.device)
    first, second = model.eval()(input_ids=follow).last_hidden_state[:, 0]
    model.train(training)
    rounding = 4 * torch.finfo(first.dtype).eps * max(first.abs().max().item(), 1.0)
    return bool((first - second).abs().max().item() <= rounding)


def _is_scorers_adapter(name: str) -> bool:
    """Whether an adapter is one of a classifier: by its label, or, without one, by a head that it holds."""
    if not (Path(name) / "adapter_config.json").is_file():
        return False
    task = LoraConfig.from_pretrained(name).task_type
    heads = {weight.partition(".")[0] for weight in adapter_weights(Path(name))} if task is None else set()
    return task == "SEQ_CLS" or bool(heads & {"score", "classifier"})


def _scorers_backbone(spec: recipe.Policy) -> PreTrainedModel:
    """The backbone of a reward model trained with LoRA, whose adapter can only be loaded on a classifier."""
    model: Any = load_weights(AutoModelForSequenceClassification, spec, num_labels=1)
    return model.base_model


def check_vocabulary(
    model: PreTrainedModel, spec: recipe.Policy, tokenizer: PreTrainedTokenizerBase, role: str
) -> None:
    """Check that ids mean the same tokens to a model as to a tokenizer; its embedding may have more rows, which are often padded.

    Raises:
        PrefoptError: they do not; names the model's role and the first token that differs.
    """
    name = " or ".join(spec.model)
    embedding: Any = model.get_input_embeddings()
    rows = embedding.weight.shape[0]
    if rows < len(tokenizer):
        raise PrefoptError(f"{role} {name} knows {rows} tokens, the policy's tokenizer {len(tokenizer)}")
    try:
        own = load_tokenizer(spec)
    except PrefoptError:  # it has no tokenizer to compare
        return
    theirs, ours = own.get_vocab(), tokenizer.get_vocab()
    if odd := [token for token, number in ours.items() if number < len(own) and theirs.get(token) != number]:
        raise PrefoptError(
            f"{role} {name} has another vocabulary than the policy: {odd[0]!r} is token {theirs.get(odd[0])} there "
            f"and {ours[odd[0]]} here, so the same ids would be different texts"
        )


def load_backbone(spec: recipe.Policy, head: bool) -> PreTrainedModel:
    """A model without its head, for its hidden states, and without a fresh adapter; of an encoder–decoder, the encoder.

    Args:
        spec: which one.
        head: it is a causal LM, which an adapter may expect; otherwise anything.

    Raises:
        PrefoptError: it cannot be loaded.
    """
    with torch.random.fork_rng():  # a pooling layer that is not in the file starts at random, and is not used
        torch.manual_seed(0)
        model = load_weights(AutoModelForCausalLM if head else AutoModel, spec)
    backbone: Any = model.get_encoder() if model.config.is_encoder_decoder else model.base_model
    return backbone


def fresh_weights(model: PreTrainedModel) -> frozenset[str]:
    """The weights of a loaded classifier that were in no file, and so started at random."""
    fresh: frozenset[str] = getattr(model, "fresh_weights", frozenset())
    return fresh


def adapter_weights(folder: Path) -> Collection[str]:
    """The names of the model's weights that an adapter holds whole, such as a head; no values are read.

    Raises:
        PrefoptError: the file is damaged.
    """
    file = folder / ADAPTER
    if not file.is_file():
        return ()
    try:
        with safe_open(file, framework="pt") as weights:
            names = list(weights.keys())
    except (SafetensorError, OSError) as error:
        raise PrefoptError(f"{file} is damaged: {error}; copy it again from where it was saved") from error
    return {name.removeprefix("base_model.model.") for name in names if ".lora_" not in name}


def without_dropout(config: Any) -> Any:
    """The configuration with every dropout at 0, so that policy and reference differ by their weights alone."""
    for name, value in list(vars(config).items()):
        if isinstance(value, PretrainedConfig):  # the text model of a multimodal one
            without_dropout(value)
        elif isinstance(value, float) and re.search(r"drop(out)?(_|$)", name):
            setattr(config, name, 0.0)
    return config


def load_weights(auto: Any, spec: recipe.Policy, **config: Any) -> PreTrainedModel:
    """A model of a recipe, by one of transformers' auto classes, with these changes to its configuration.

    Raises:
        PrefoptError: it cannot be loaded.
    """
    name = find_model(spec.model)
    model = loaded(name, "model", lambda: _model(auto, name, spec, config))
    switch_off_dropout(model)
    if spec.gradient_checkpointing:
        ignore_renamed_checkpointing()
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return model


def _model(auto: Any, name: str, spec: recipe.Policy, changes: Mapping[str, Any]) -> PreTrainedModel:
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


def _from_folder(auto: Any, name: str, spec: recipe.Policy, changes: Mapping[str, Any]) -> PreTrainedModel:
    if (Path(name) / "adapter_config.json").is_file():
        # An adapter that was trained before is part of this run's starting point, and so of its reference.
        base = find_model([str(LoraConfig.from_pretrained(name).base_model_name_or_path)])
        ignore_renamed_checkpointing()
        beneath = _from_folder(auto, base, spec, changes)
        fresh = fresh_weights(beneath) - set(adapter_weights(Path(name)))
        merged: Any = PeftModel.from_pretrained(beneath, name).merge_and_unload()
        merged.fresh_weights = fresh
        merged.name_or_path = name  # an adapter trained on top will store this as its base
        return merged.requires_grad_(True)  # peft froze it
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
        )
        model, info = both
        model.fresh_weights = frozenset(info["missing_keys"])
        return model

    if auto is not AutoModelForCausalLM:  # others may have randomly initialised parts
        return made()
    same = (stamp(name), spec.dtype, spec.attention, spec.remote_code, *changes.items())
    return shared("models", same, made, copy=deepcopy)


def adapted(
    model: PreTrainedModel, spec: recipe.Policy, seed: int, task: str, **more: Any
) -> PreTrainedModel | PeftModel:
    """With a fresh adapter where the recipe asks for one.

    Args:
        model: of the recipe.
        spec: says whether there is an adapter.
        seed: of its weights.
        task: peft's name for what the model does.
        more: fields of peft's configuration.

    Raises:
        PrefoptError: its targets are not in the model.
    """
    if spec.adapter is None:
        return model
    ignore_renamed_checkpointing()
    targets = spec.adapter.targets
    config = LoraConfig(
        r=spec.adapter.r,
        lora_alpha=spec.adapter.alpha,  # type: ignore[arg-type]
        target_modules=targets if isinstance(targets, str) else list(targets),
        task_type=task,
        **more,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed_for(seed, "init"))
        try:
            return get_peft_model(model, config)
        except ValueError as error:
            raise PrefoptError(f"policy.adapter: {error}") from error


def loaded(name: str, what: str, load: Callable[[], T]) -> T:
    """What is loaded.

    Raises:
        PrefoptError: it cannot be; says what and why.
    """
    try:
        with advising(f"loading the {what} {name}", LOADING):
            return load()
    except PrefoptError:
        raise
    except Exception as error:  # a damaged folder can raise almost anything
        first = next(iter(str(error).strip().splitlines()), "")
        if "trust_remote_code" in str(error):
            first += " (policy.remote_code: true allows it)"
        raise PrefoptError(
            f"cannot load the {what} {name}: {type(error).__name__}: {first}\n  {HOW_TO_GET_A_MODEL}"
        ) from error


@lru_cache
def _on_hub(name: str) -> str:
    """Ask the hub once, with a short timeout, before anything is loaded: transformers itself would retry for a minute."""
    try:
        model_info(name, timeout=10)
    except Exception as error:  # missing, forbidden or unreachable are exceptions of many classes
        first = next(iter(str(error).strip().splitlines()), "")
        raise PrefoptError(
            f"no model at {name}: it is not on disk, and asking the hub failed ({type(error).__name__}: {first}); "
            f"{HOW_TO_GET_A_MODEL}"
        ) from error
    return name


def _cached(name: str) -> bool:
    return isinstance(try_to_load_from_cache(name, "config.json"), str)
