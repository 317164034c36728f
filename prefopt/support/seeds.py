"""Seeds derived by hashing, and hashes of texts. What only wants a seed, such as a study's plan, does not wait for torch."""

import hashlib
from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import torch


def seed_for(*parts: int | str) -> int:
    """A 63-bit seed that depends on every part, the same in every process.

    Hashed, because sums of seeds collide: seed 1, step 2 with seed 2, step 1.
    """
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def digested(texts: Iterable[str], count: int) -> "np.ndarray":
    """[count] hashes of 16 bytes, one for each text: to compare texts that do not fit into memory together."""
    import numpy as np

    hashes = (hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest() for text in texts)
    return np.fromiter(hashes, "S16", count)


def generator(*parts: int | str) -> "torch.Generator":
    """A CPU generator seeded with `seed_for(*parts)`."""
    import torch

    return torch.Generator().manual_seed(seed_for(*parts))
