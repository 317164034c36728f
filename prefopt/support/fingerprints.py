"""Hashes of model weights, which are equal exactly when the weights are."""

import hashlib
from collections.abc import Mapping

import torch
from torch import nn
from torch.distributed.tensor import DTensor


def fingerprint_weights(model: nn.Module, but: str | None = None) -> str:
    """A hash of every parameter's name, dtype, shape and bytes, except those whose names start with `but`."""
    named = dict(model.named_parameters())
    return fingerprint_tensors({name: p for name, p in named.items() if but is None or not name.startswith(but)})


def fingerprint_tensors(tensors: Mapping[str, torch.Tensor]) -> str:
    """A hash of named tensors: names, dtypes, shapes and bytes. Of sharded ones all processes ask at once."""
    digest = hashlib.blake2b(digest_size=16)
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        whole = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
        digest.update(whole.detach().contiguous().flatten().view(torch.uint8).cpu().numpy().data)
    return digest.hexdigest()
