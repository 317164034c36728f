"""From the names in a recipe to models and tokenizers."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import try_to_load_from_cache
from huggingface_hub.errors import HFValidationError
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from prefopt import recipe
from prefopt.errors import PrefoptError
from prefopt.functional import seed_for
from prefopt.policy.policy import Policy
from prefopt.policy.scorer import Scorer

HOW_TO_GET_ONE = (
    "give a folder with config.json and weights (from save_pretrained), a finished run folder, "
    "or a hub id such as HuggingFaceTB/SmolLM2-135M-Instruct; ${pocket} is the small model that comes with prefopt"
)


def find_model(names: Sequence[str]) -> str:
    """The first of these models that can be had: a folder, a run folder's `policy/`, or a hub id. Loads nothing.

    Raises:
        PrefoptError: none is on disk and none looks like a hub id; says how to get one.
    """
    for name in names:
        folder = Path(name).expanduser()
        for place in (folder / "policy", folder):
            if (place / "config.json").is_file() or (place / "adapter_config.json").is_file():
                return str(place)
    hub = [n for n in names if re.fullmatch(r"[\w.-]+/[\w.-]+", n) and not Path(n).expanduser().exists()]
    cached = [n for n in hub if _cached(n)]
    if cached or hub:
        return (cached or hub)[0]
    raise PrefoptError(f"no model at {' or '.join(names)}: {HOW_TO_GET_ONE}")


def load_tokenizer(spec: recipe.Policy) -> PreTrainedTokenizerBase:
    """The policy's tokenizer.

    Raises:
        PrefoptError: there is none, or it cannot be loaded.
    """
    name = spec.tokenizer or find_model(spec.model)
    return _loaded(name, "tokenizer", lambda: AutoTokenizer.from_pretrained(name, trust_remote_code=spec.remote_code))


def load_policy(spec: recipe.Policy, tokenizer: PreTrainedTokenizerBase, seed: int) -> Policy:
    """A causal LM, with a fresh adapter where the recipe asks for one.

    Raises:
        PrefoptError: it cannot be loaded, or an adapter's targets are not in it.
    """
    return Policy(_adapted(_load(AutoModelForCausalLM, spec), spec, seed, "CAUSAL_LM"), tokenizer)


def load_scorer(spec: recipe.Policy, tokenizer: PreTrainedTokenizerBase, seed: int) -> Scorer:
    """A sequence classifier with one output; a missing head starts at random, from the seed.

    Raises:
        PrefoptError: it cannot be loaded, or has more than one output.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed_for(seed, "init"))
        model = _load(AutoModelForSequenceClassification, spec, num_labels=1)
    return Scorer(_adapted(model, spec, seed, "SEQ_CLS"), tokenizer)


def without_dropout(config: Any) -> Any:
    """The configuration with every dropout at 0: policy and reference must differ by their weights alone."""
    for name, value in vars(config).items():
        if (
            re.search(r"drop(out)?(_|$)|_pdrop$", name)
            and isinstance(value, int | float)
            and not isinstance(value, bool)
        ):
            setattr(config, name, 0.0)
    return config


def _load(auto: Any, spec: recipe.Policy, **config: Any) -> PreTrainedModel:
    name = find_model(spec.model)
    adapter = (Path(name) / "adapter_config.json").is_file()

    def load() -> PreTrainedModel:
        base = LoraConfig.from_pretrained(name).base_model_name_or_path if adapter else name
        model = auto.from_pretrained(
            base,
            config=without_dropout(AutoConfig.from_pretrained(base, trust_remote_code=spec.remote_code, **config)),
            dtype=getattr(torch, spec.dtype),
            attn_implementation=spec.attention,
            trust_remote_code=spec.remote_code,
        )
        # An adapter that was trained before is part of this run's starting point, and so of its reference.
        return PeftModel.from_pretrained(model, name).merge_and_unload() if adapter else model

    model = _loaded(name, "model", load)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    if spec.gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        if spec.adapter:  # otherwise nothing that a checkpoint sees needs a gradient
            model.enable_input_require_grads()
    return model


def _adapted(model: PreTrainedModel, spec: recipe.Policy, seed: int, task: str) -> PreTrainedModel | PeftModel:
    if spec.adapter is None:
        return model
    targets = spec.adapter.targets
    config = LoraConfig(
        r=spec.adapter.r,
        lora_alpha=spec.adapter.alpha,  # type: ignore[arg-type]
        target_modules=targets if isinstance(targets, str) else list(targets),
        task_type=task,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed_for(seed, "init"))
        try:
            return get_peft_model(model, config)
        except ValueError as error:
            raise PrefoptError(f"policy.adapter: {error}") from error


def _loaded(name: str, what: str, load: Any) -> Any:
    try:
        return load()
    except (OSError, ValueError, HFValidationError) as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise PrefoptError(f"cannot load the {what} {name}: {first}\n  {HOW_TO_GET_ONE}") from error


def _cached(name: str) -> bool:
    return isinstance(try_to_load_from_cache(name, "config.json"), str)
