"""Hashes of model weights, of texts and of prefopt's own code, which are equal exactly when these are."""

import hashlib
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path

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


def fingerprint_texts(texts: Iterable[str]) -> str:
    """A hash of texts, in order."""
    digest = hashlib.blake2b(digest_size=16)
    for text in texts:
        digest.update(f"{len(text)} {text}".encode("utf-8", "surrogatepass"))
    return digest.hexdigest()


@cache
def fingerprint_code() -> str:
    """A hash of prefopt's own files: what an edited checkout computes is another result."""
    files = sorted(Path(__file__).parents[1].rglob("*.py"))
    return fingerprint_texts(file.read_text(encoding="utf-8") for file in files)
