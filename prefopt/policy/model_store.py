"""The shared store on disk (`support.disk_store`) for what one model computes: one folder for each model and arithmetic.

Used by the log-prob cache and by the embeddings of prompts.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import PreTrainedModel

from prefopt.policy.compat import attention_of
from prefopt.policy.rows.attention import NAME
from prefopt.support.disk_store import Store
from prefopt.support.files import write_whole
from prefopt.support.fingerprints import fingerprint_tensors

GIGABYTES = 8.0
"""Default limit on the size of one kind of entries."""


def open_store(folder: Path, model: PreTrainedModel, fingerprint: str, version: int) -> tuple[bytes, Store]:
    """The store of a model under its present arithmetic, and the bytes that every key in it starts with.

    Args:
        folder: of this kind of entries, for example `cache_folder("logps")`.
        model: which computes the entries.
        fingerprint: `model_fingerprint` of the model.
        version: of what is computed; raise it when a change of prefopt changes the numbers.
    """
    arithmetic = arithmetic_of(model)
    key = hashlib.blake2b(f"{version} {fingerprint} {arithmetic}".encode(), digest_size=16)
    place = folder / key.hexdigest()
    _write_note(place, model, arithmetic)
    return key.digest(), Store(place, size_limit())


def model_fingerprint(model: PreTrainedModel, weights: Mapping[str, Tensor]) -> str:
    """A hash of the weights, of the configuration that says how they are used, and of the version of transformers."""
    ignored = ("_name_or_path", "transformers_version", "use_cache")
    config = {key: value for key, value in model.config.to_dict().items() if key not in ignored}
    parts = (type(model).__name__, config, transformers.__version__, fingerprint_tensors(weights))
    return hashlib.blake2b(json.dumps(parts, default=str, sort_keys=True).encode(), digest_size=16).hexdigest()


def arithmetic_of(model: PreTrainedModel) -> str:
    """What decides how sums are rounded, apart from weights and tokens: device, precision and attention implementation."""
    device = next(model.parameters()).device.type
    low = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
    attention = attention_of(model.config)
    attention = "sdpa" if attention == NAME else attention  # a model may switch between the two, on its first pass
    return f"{device}, autocast {low}, matmul {torch.get_float32_matmul_precision()}, attention {attention}"


def size_limit() -> int:
    """Most bytes of all entries of one kind: $PREFOPT_CACHE_GB gigabytes, or 8."""
    given = os.environ.get("PREFOPT_CACHE_GB", "")
    with suppress(ValueError):
        return int(float(given) * 1e9)
    return int(GIGABYTES * 1e9)


def _write_note(folder: Path, model: PreTrainedModel, arithmetic: str) -> None:
    """Describe the model in `model.json`, which `prefopt cache` shows: the names of folders are hashes."""
    weights: Any = next(model.parameters())
    note = {
        "model": model.config.name_or_path or type(model).__name__,
        "class": type(model).__name__,
        "parameters": model.num_parameters(),
        "dtype": str(weights.dtype).removeprefix("torch."),
        "arithmetic": arithmetic,
    }
    with suppress(OSError):  # a run does not fail because a cache cannot be written
        if not (folder / "model.json").exists():
            folder.mkdir(parents=True, exist_ok=True)
            write_whole(folder / "model.json", json.dumps(note, indent=2))
