"""A cache on disk for the log-probs that a frozen model gives to recorded completions, shared by all runs."""

import dataclasses
import hashlib
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from prefopt.policy.compat import adapter_prefix
from prefopt.policy.model_store import arithmetic_of, model_fingerprint, open_store
from prefopt.policy.policy import Policy
from prefopt.support.caches import cache_folder
from prefopt.support.disk_store import KEY, Store
from prefopt.support.sending import sent
from prefopt.types import ORIGINS, Batch, Outputs

KIND = "logps"
VERSION = 1
"""Part of every key: raise it when a change of prefopt changes log-probs."""

GENERATED = torch.tensor([ORIGINS.index(origin) for origin in ("policy", "reference", "mixture", "greedy")])
"""Origins of completions that a run has just generated. They do not occur again, so they are not cached."""


class LogpCache:
    """Token-level log-probs of a frozen model: read from disk where they are there, otherwise computed and written there.

    An entry belongs to one completion of one prompt. Its key is a hash of everything that the numbers depend on: weights,
    configuration and arithmetic of the model, token ids of prompt and completion, mask, temperature. So all objectives, seeds and
    values of β share entries, and neither the batch nor its padding nor the number of completions is in the key.

    Args:
        policy: whose weights do not change; an adapter is not part of them.
        folder: of all models' entries; `cache_folder("logps")` unless given.

    Attributes:
        served: number of completions that were read from disk.
        computed: number of completions that the model computed.
    """

    def __init__(self, policy: Policy, folder: Path | None = None):
        self.policy = policy
        self.folder = cache_folder(KIND) if folder is None else folder
        self.served = self.computed = 0
        self._fingerprint: str | None = None
        self._stores: dict[str, tuple[bytes, Store]] = {}

    @torch.no_grad()
    def __call__(self, batch: Batch, compute: Callable[[Batch], Outputs]) -> Outputs:
        """Log-probs [B, K, T] of the batch; `compute` is called for the completions that have no entry yet."""
        prefix, store = self._store()
        present = batch.present.flatten().cpu().numpy()
        keys, lengths = entry_keys(batch, prefix)
        keys, lengths = keys[present], lengths[present]
        found, values = store.get(keys)
        if not found.all():  # another run may have written them in the meantime
            store.refresh()
            found, values = store.get(keys)
        logps = torch.zeros(batch.mask.shape)
        _place(logps, present, found, lengths, values)
        self.served += int(found.sum())
        self.computed += int((~found).sum())
        device = self.policy.device
        if found.all():
            return Outputs(mask=sent(batch.mask, device), logps=sent(logps, device))
        missing = torch.zeros(batch.mask.shape[:2], dtype=torch.bool)
        missing.view(-1)[torch.from_numpy(present)] = torch.from_numpy(~found)
        computed = _computed(batch, missing, compute)
        logps[missing] = computed[missing]
        new = [
            computed[b, k, :length].numpy()
            for (b, k), length in zip(missing.nonzero().tolist(), lengths[~found], strict=True)
        ]
        if all(np.isfinite(vector).all() for vector in new):
            store.put(keys[~found], new)
        return Outputs(mask=sent(batch.mask, device), logps=sent(logps, device))

    def _store(self) -> tuple[bytes, Store]:
        """The model's store for its present arithmetic, and the bytes that every key in it starts with."""
        arithmetic = arithmetic_of(self.policy.causal)
        if arithmetic not in self._stores:
            self._fingerprint = self._fingerprint or fingerprint(self.policy)
            self._stores[arithmetic] = open_store(self.folder, self.policy.causal, self._fingerprint, VERSION)
        return self._stores[arithmetic]


def is_recorded(batch: Batch) -> bool:
    """Whether all completions come from data, not from a model in this run."""
    origin = batch.columns.get("origin")
    return origin is None or not bool(torch.isin(origin.cpu(), GENERATED).any())


def entry_keys(batch: Batch, prefix: bytes) -> tuple[NDArray, NDArray]:
    """Keys of all completions, [B·K] `KEY`, and their lengths up to the last token of the mask, [B·K] int64."""
    ids, mask = batch.completion_ids.cpu().numpy(), batch.mask.cpu().numpy()
    lengths = np.where(mask.any(-1), mask.shape[-1] - mask[..., ::-1].argmax(-1), 0)
    temperature = batch.columns.get("temperature")
    temperatures = [1.0] * len(batch) if temperature is None else temperature.tolist()
    digests = []
    for b, prompt in enumerate(batch.prompt_ids):
        row = np.array(prompt, np.int64)
        of_prompt = hashlib.blake2b(
            prefix + struct.pack("<dq", temperatures[b], len(row)) + row.tobytes(), digest_size=16
        )
        for k, length in enumerate(lengths[b].tolist()):
            of_completion = of_prompt.copy()
            of_completion.update(ids[b, k, :length].tobytes() + mask[b, k, :length].tobytes())
            digests.append(of_completion.digest())
    return np.frombuffer(b"".join(digests), KEY), lengths.ravel()


def fingerprint(policy: Policy) -> str:
    """`model_fingerprint` of the model without an adapter."""
    return model_fingerprint(policy.causal, dict(base_weights(policy)))


def base_weights(policy: Policy) -> Iterator[tuple[str, Tensor]]:
    """The model's weights without its adapter, under the names that they have in a model without one."""
    added = adapter_prefix(policy.model) if policy.has_adapter else None
    for name, weight in policy.causal.named_parameters():
        if added is None:
            yield name, weight
        elif added not in name and "modules_to_save" not in name:
            yield name.replace(".base_layer.", ".").replace(".original_module.", "."), weight


def _computed(batch: Batch, missing: Tensor, compute: Callable[[Batch], Outputs]) -> Tensor:
    """[B, K, T] on the CPU: log-probs of the missing completions; the others are masked out, and 0."""
    rows = missing.any(-1).nonzero()[:, 0]
    part = batch.rows(rows)
    mask = part.mask & missing[rows].to(part.mask.device)[..., None]
    outputs = compute(dataclasses.replace(part, mask=mask))
    assert outputs.logps is not None
    logps = torch.zeros(batch.mask.shape)
    logps[rows] = outputs.logps.float().cpu()
    return logps


def _place(logps: Tensor, present: NDArray, found: NDArray, lengths: NDArray, values: NDArray) -> None:
    """Write the values of the found completions, which follow one another, to their places in [B, K, T]."""
    counts = np.zeros(len(present), np.int64)
    counts[present] = np.where(found, lengths, 0)
    where = np.arange(logps.shape[-1]) < counts[:, None]
    logps.view(-1, logps.shape[-1]).numpy()[where] = values
