"""Log-probs of recorded completions that a frozen model has said once, kept for every further run."""

import dataclasses
import hashlib
import json
import os
import struct
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel

from prefopt.policy.policy import Policy
from prefopt.policy.rows.attention import NAME
from prefopt.support.caches import cache_folder
from prefopt.support.disk_store import KEY, Store
from prefopt.support.fingerprints import fingerprint_tensors
from prefopt.types import ORIGINS, Batch, Outputs

KIND = "logps"
FORMAT = 1
"""Part of every key: raise it when a change of prefopt changes log-probs."""

FRESH = torch.tensor([ORIGINS.index(origin) for origin in ("policy", "reference", "mixture", "greedy")])
"""Who writes completions that never come again."""

GIGABYTES = 8.0


class KeptLogps:
    """Token-level log-probs of a frozen model: read from disk where they are there, and else computed and put there.

    Entries are of one completion each, by everything that the numbers depend on and nothing else: weights, configuration and
    arithmetic of the model, token ids of prompt and completion, mask, temperature. So every objective, seed and β shares them,
    whatever it sums or averages, and batches, padding and the number of completions have no say.

    Args:
        policy: whose weights do not change; an adapter is no part of them.
        folder: where to keep them; below `cache_folder("logps")` unless given.

    Attributes:
        served: completions that came from disk.
        computed: completions that the model was asked for.
    """

    def __init__(self, policy: Policy, folder: Path | None = None):
        self.policy = policy
        self.folder = cache_folder(KIND) if folder is None else folder
        self.served = self.computed = 0
        self._fingerprint: str | None = None
        self._stores: dict[str, tuple[bytes, Store]] = {}

    @torch.no_grad()
    def __call__(self, batch: Batch, live: Callable[[Batch], Outputs]) -> Outputs:
        """What the model says of the batch; `live` is asked for what is not kept."""
        prefix, store = self._store()
        present = batch.present.flatten().cpu().numpy()
        keys, lengths = entry_keys(batch, prefix)
        keys, lengths = keys[present], lengths[present]
        found, values = store.get(keys)
        if not found.all():  # perhaps another run has said it in the meantime
            store.refresh()
            found, values = store.get(keys)
        logps = torch.zeros(batch.mask.shape)
        _place(logps, present, found, lengths, values)
        self.served += int(found.sum())
        self.computed += int((~found).sum())
        device = self.policy.device
        if found.all():
            return Outputs(mask=batch.mask.to(device), logps=logps.to(device))
        missing = torch.zeros(batch.mask.shape[:2], dtype=torch.bool)
        missing.view(-1)[torch.from_numpy(present)] = torch.from_numpy(~found)
        said = self._said(batch, missing, live)
        logps[missing] = said[missing]
        new = [
            said[b, k, :length].numpy()
            for (b, k), length in zip(missing.nonzero().tolist(), lengths[~found], strict=True)
        ]
        if all(np.isfinite(vector).all() for vector in new):
            store.put(keys[~found], new)
        return Outputs(mask=batch.mask.to(device), logps=logps.to(device))

    def _said(self, batch: Batch, missing: Tensor, live: Callable[[Batch], Outputs]) -> Tensor:
        """[B, K, T] on the CPU: what the model says of the missing completions; the others are absent to it."""
        rows = missing.any(-1).nonzero()[:, 0]
        part = batch.rows(rows)
        mask = part.mask & missing[rows].to(part.mask.device)[..., None]
        outputs = live(dataclasses.replace(part, mask=mask))
        assert outputs.logps is not None
        logps = torch.zeros(batch.mask.shape)
        logps[rows] = outputs.logps.float().cpu()
        return logps

    def _store(self) -> tuple[bytes, Store]:
        """The model's own store for the arithmetic of this moment, and what every key in it begins with."""
        arithmetic = arithmetic_of(self.policy)
        if arithmetic not in self._stores:
            self._fingerprint = self._fingerprint or fingerprint(self.policy)
            key = hashlib.blake2b(f"{FORMAT} {self._fingerprint} {arithmetic}".encode(), digest_size=16)
            folder = self.folder / key.hexdigest()
            self._stores[arithmetic] = key.digest(), Store(folder, limit())
            _describe(folder, self.policy.causal, arithmetic)
        return self._stores[arithmetic]


def recorded(batch: Batch) -> bool:
    """Whether the completions come from data: what a model has just written is not worth keeping."""
    origin = batch.columns.get("origin")
    return origin is None or not bool(torch.isin(origin.cpu(), FRESH).any())


def entry_keys(batch: Batch, prefix: bytes) -> tuple[NDArray, NDArray]:
    """Keys of all completions, [B·K] `KEY`, and their lengths, up to the last token of the mask, [B·K] int64."""
    ids, mask = batch.completion_ids.cpu().numpy(), batch.mask.cpu().numpy()
    lengths = np.where(mask.any(-1), mask.shape[-1] - mask[..., ::-1].argmax(-1), 0)
    temperature = batch.columns.get("temperature")
    heat = [1.0] * len(batch) if temperature is None else temperature.tolist()
    digests = []
    for b, prompt in enumerate(batch.prompt_ids):
        row = np.array(prompt, np.int64)
        begun = hashlib.blake2b(prefix + struct.pack("<dq", heat[b], len(row)) + row.tobytes(), digest_size=16)
        for k, length in enumerate(lengths[b].tolist()):
            whole = begun.copy()
            whole.update(ids[b, k, :length].tobytes() + mask[b, k, :length].tobytes())
            digests.append(whole.digest())
    return np.frombuffer(b"".join(digests), KEY), lengths.ravel()


def fingerprint(policy: Policy) -> str:
    """A hash of the weights without an adapter, and of the configuration that says how they are used."""
    causal = policy.causal
    config = {
        k: v
        for k, v in causal.config.to_dict().items()
        if k not in ("_name_or_path", "transformers_version", "use_cache")
    }
    said = (type(causal).__name__, config, transformers.__version__, fingerprint_tensors(dict(own_weights(policy))))
    return hashlib.blake2b(json.dumps(said, default=str, sort_keys=True).encode(), digest_size=16).hexdigest()


def own_weights(policy: Policy) -> Iterator[tuple[str, Tensor]]:
    """The weights that the model has without its adapter, by the names that they have where there is none."""
    added = getattr(policy.model.base_model, "prefix", "lora_") if policy.has_adapter else None
    for name, weight in policy.causal.named_parameters():
        if added is None:
            yield name, weight
        elif added not in name and "modules_to_save" not in name:
            yield name.replace(".base_layer.", ".").replace(".original_module.", "."), weight


def arithmetic_of(policy: Policy) -> str:
    """What beside weights and tokens decides how a sum is rounded: device, precision, kind of attention."""
    device = policy.device.type
    low = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
    attention = getattr(policy.causal.config, "_attn_implementation", None)
    attention = "sdpa" if attention == NAME else attention  # by segments or not, which a model's first pass decides
    return f"{device}, autocast {low}, matmul {torch.get_float32_matmul_precision()}, attention {attention}"


def limit() -> int:
    """Bytes that log-probs may take: $PREFOPT_CACHE_GB gigabytes, or 8."""
    given = os.environ.get("PREFOPT_CACHE_GB", "")
    with suppress(ValueError):
        return int(float(given) * 1e9)
    return int(GIGABYTES * 1e9)


def _place(logps: Tensor, present: NDArray, found: NDArray, lengths: NDArray, values: NDArray) -> None:
    """Put values of the found completions, one after another, where they belong in [B, K, T]."""
    kept = np.zeros(len(present), np.int64)
    kept[present] = np.where(found, lengths, 0)
    where = np.arange(logps.shape[-1]) < kept[:, None]
    logps.view(-1, logps.shape[-1]).numpy()[where] = values


def _describe(folder: Path, model: PreTrainedModel, arithmetic: str) -> None:
    """Leave a note for `prefopt cache`: the names of folders are hashes."""
    weights: Any = next(model.parameters())
    note = {
        "model": model.config.name_or_path or type(model).__name__,
        "class": type(model).__name__,
        "parameters": model.num_parameters(),
        "dtype": str(weights.dtype).removeprefix("torch."),
        "arithmetic": arithmetic,
    }
    staging = folder / f".{uuid.uuid4().hex}"
    with suppress(OSError):  # a run does not fail for want of a note
        if not (folder / "model.json").exists():
            folder.mkdir(parents=True, exist_ok=True)
            staging.write_text(json.dumps(note, indent=2))
            os.replace(staging, folder / "model.json")
