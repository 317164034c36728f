"""Pure tensor maths, and seeds, that several modules share."""

import hashlib
from collections.abc import Mapping

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from prefopt.types import Batch


def pair_metrics(reward: Float[Tensor, "B 2"]) -> Mapping[str, Float[Tensor, " B"]]:
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


def masked_log_softmax(values: Float[Tensor, "*L K"], present: Bool[Tensor, "*L K"]) -> Float[Tensor, "*L K"]:
    """[..., K] log-softmax over those that are present; 0 for the others."""
    lowest = torch.finfo(values.dtype).min
    return values.masked_fill(~present, lowest).log_softmax(-1).masked_fill(~present, 0)


def plackett_luce(values: Float[Tensor, "B K"], present: Bool[Tensor, "B K"]) -> Float[Tensor, " B"]:
    """[B] log-likelihood of the order 1 ≻ 2 ≻ … ≻ K under Plackett–Luce with these log-strengths.

    Args:
        values: [B, K], best first.
        present: [B, K]; the others take no part.
    """
    completions = values.shape[-1]
    left = torch.ones(
        completions, completions, dtype=torch.bool, device=values.device
    ).triu()  # [k, j]: j is not yet placed
    takes_part = left & present[:, None, :]
    placed = masked_log_softmax(values[:, None, :].expand(-1, completions, -1), takes_part)
    return placed.diagonal(dim1=1, dim2=2).masked_fill(~present, 0).sum(-1)


def better(batch: Batch) -> Bool[Tensor, "B K K"]:
    """[B, i, j] bool: completion i has a higher score than j, and both are present."""
    assert batch.scores is not None
    present = batch.present
    return (batch.scores[:, :, None] > batch.scores[:, None, :]) & present[:, :, None] & present[:, None, :]


def list_metrics(reward: Float[Tensor, "B K"], batch: Batch) -> Mapping[str, Float[Tensor, " B"]]:
    """The numbers by which every listwise method is watched: those of `pair_metrics` for the best and the worst of each list.

    Args:
        reward: [B, K].
        batch: with scores, or else in order, best first.

    Returns:
        Each [B], without gradient; NaN where a list has fewer than two completions.
    """
    present = batch.present
    place = torch.arange(present.shape[-1], device=reward.device).expand(present.shape)
    merit = -place.to(reward) if batch.scores is None else batch.scores.to(reward)
    best = merit.masked_fill(~present, -torch.inf).argmax(-1, keepdim=True)
    worst = merit.masked_fill(~present, torch.inf).argmin(-1, keepdim=True)
    found = pair_metrics(torch.cat([reward.gather(-1, best), reward.gather(-1, worst)], -1))
    alone = present.sum(-1) < 2
    return {name: value.masked_fill(alone, torch.nan) for name, value in found.items()}
