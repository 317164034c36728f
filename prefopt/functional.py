"""Pure tensor maths, and seeds, that several modules share."""

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor


def pair_metrics(reward: Tensor) -> Mapping[str, Tensor]:
    """The four numbers by which every pairwise method is watched.

    Chosen and rejected rewards are apart because a margin can grow while both fall.

    Args:
        reward: [B, 2], (implicit) reward of the chosen and of the rejected completion.

    Returns:
        Each [B], without gradient. A tie counts half in the accuracy.
    """
    chosen, rejected = reward.detach().unbind(-1)
    margin = chosen - rejected
    return {
        "rewards/chosen": chosen,
        "rewards/rejected": rejected,
        "rewards/margin": margin,
        "rewards/accuracy": (margin.sign() + 1) / 2,
    }


def seed_for(*parts: int | str) -> int:
    """A 63-bit seed that depends on every part, the same in every process.

    Hashed because seeds that are added collide: seed 1, step 2 with seed 2, step 1.
    """
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def generator(*parts: int | str) -> torch.Generator:
    """A CPU generator seeded with `seed_for(*parts)`."""
    return torch.Generator().manual_seed(seed_for(*parts))
