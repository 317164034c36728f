"""Saving models in the Hugging Face format, as transformers and peft alone will read them."""

import json
import logging
from copy import deepcopy
from pathlib import Path
from typing import Any

from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from prefopt.policy.adapters import MAGNITUDE, WEIGHTS, merged
from prefopt.policy.quantised import record
from prefopt.policy.stacking import save_stacked
from prefopt.support.errors import PrefoptError
from prefopt.support.files import write_whole

log = logging.getLogger(__name__)

GENERATION = "generation_config.json"
LARGEST = 2**31 - 1
"""Number that a token can have."""


def end_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None) -> list[int]:
    """The ids that end what a model writes: the tokenizer's EOS first, then those of the model's generation settings.

    Raises:
        PrefoptError: one of them can be no token.
    """
    own: Any = model.generation_config.eos_token_id if getattr(model, "generation_config", None) else None
    listed = own if isinstance(own, list) else [own]
    first = None if tokenizer is None else tokenizer.eos_token_id
    ends = [token for token in [first, *listed] if token is not None]
    if wrong := [end for end in ends if not isinstance(end, int) or abs(end) > LARGEST]:
        raise PrefoptError(
            f"{model.name_or_path}: eos_token_id in {GENERATION} must be the number of a token, or a list of such; it has "
            f"{str(wrong[0])[:40]}"
        )
    return list(dict.fromkeys(ends))


def save_weights(model: PreTrainedModel | PeftModel, folder: Path) -> None:
    """The weights, or the adapter alone.

    An adapter whose base is nowhere on disk is saved together with the adapter that was merged into it, where both are LoRA, and
    otherwise merged into whole weights.
    """
    if isinstance(model, PeftModel) and not model.peft_config["default"].base_model_name_or_path:
        lower = getattr(model.get_base_model(), "adapter_beneath", None)
        if lower is not None and save_stacked(model, lower, folder):
            return
        merged(deepcopy(model)).save_pretrained(str(folder))
    elif isinstance(model, PeftModel):  # adapters add no tokens; to find that out, peft would ask the hub for the base
        card = folder / "README.md"
        there = card.exists()
        model.save_pretrained(str(folder), save_embedding_layers=False)
        if not there:  # peft's is a form to fill in, and names the base's folder where the hub takes ids alone
            card.unlink(missing_ok=True)
        _name_magnitudes(folder / WEIGHTS[0])
        record(model, folder)
    else:
        model.save_pretrained(str(folder))


def _name_magnitudes(file: Path) -> None:
    """Give DoRA's magnitudes in an adapter's file the names that transformers finds as well as peft."""
    weights = load_file(file)
    if any(key.endswith(MAGNITUDE) for key in weights):
        named = {f"{key}.weight" if key.endswith(MAGNITUDE) else key: weight for key, weight in weights.items()}
        save_file(named, file, {"format": "pt"})


def save_generation_settings(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None, folder: Path, adapter: bool = False
) -> None:
    """Where the model's completions end, so that `generate` of transformers ends them where evaluations did.

    Args:
        model: the causal LM.
        tokenizer: its tokenizer.
        folder: where the model was saved.
        adapter: what was saved is an adapter: transformers then reads the settings of its base, and prefopt these.
    """
    settings: Any = getattr(model, "generation_config", None)
    ends = end_ids(model, tokenizer)
    if settings is None or not ends:
        return
    before = settings.eos_token_id
    # Not by `save_pretrained`, which refuses settings with a warning as soon as one of them was changed.
    content = json.loads(settings.to_json_string()) | {"eos_token_id": ends if len(ends) > 1 else ends[0]}
    write_whole(folder / GENERATION, json.dumps(content, indent=2, sort_keys=True) + "\n")
    known = before if isinstance(before, list) else [before]
    if adapter and set(ends) != set(known):
        log.warning(
            "%s holds an adapter, of which transformers takes the generation settings from its base, so `generate` ends at %s and "
            "not at %s: pass it GenerationConfig.from_pretrained(folder), or merge the adapter with `prefopt export`",
            folder,
            known,
            ends,
        )
