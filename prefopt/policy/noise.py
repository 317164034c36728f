"""Sampling noise that belongs to the row: a function of (seed, position, token) and of nothing else."""

import torch
from torch import Tensor
from transformers import LogitsProcessor

GOLDEN = 0x9E3779B97F4A7C15 - (1 << 64)


def row_keys(seeds: Tensor, completions: int) -> Tensor:
    """[B·K] int64: a key of its own for completion k of each prompt, from the prompt's seed, [B] int64."""
    return mix(seeds[:, None] + torch.arange(1, completions + 1) * GOLDEN).flatten()


def gumbel(seeds: Tensor, position: int, vocabulary: int) -> Tensor:
    """Standard Gumbel noise [N, V] in float64, by counting: a splitmix64 hash of (seed, position, token).

    Source of the hash: Steele, Lea & Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014.
    """
    tokens = torch.arange(vocabulary, device=seeds.device)
    bits = mix(mix(mix(seeds + torch.full_like(seeds, position) * GOLDEN))[:, None] + tokens * GOLDEN)
    uniform = ((bits >> 11 & (1 << 53) - 1).double() + 0.5) * 2.0**-53
    return -torch.log(-torch.log1p(-uniform))


def mix(x: Tensor) -> Tensor:
    """splitmix64's finaliser on int64, whose products wrap and whose right shift must be made logical."""
    for shift, factor in ((30, 0xBF58476D1CE4E5B9 - (1 << 64)), (27, 0x94D049BB133111EB - (1 << 64))):
        x = (x ^ (x >> shift & (1 << 64 - shift) - 1)) * factor
    return x ^ (x >> 31 & (1 << 33) - 1)


class RowNoise(LogitsProcessor):
    """Gumbel noise for `model.generate`, whose largest score is then a sample from softmax(scores).

    Gumbel 1954; Maddison et al., arXiv 1411.0030. So a completion does not depend on its companions in the batch, on the
    padding, the number of processes, or a resume.

    Args:
        keys: [N] int64, one for each row.
        start: length of the padded prompts; the position counts from there.
    """

    def __init__(self, keys: Tensor, start: int):
        self.keys = keys
        self.start = start

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """[N, V] scores with their noise."""
        noise = gumbel(self.keys.to(scores.device), input_ids.shape[1] - self.start, scores.shape[1])
        return scores + noise.to(scores.dtype)
