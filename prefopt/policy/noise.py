"""Sampling noise that belongs to the row: a function of (seed, row, position) and of nothing else."""

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import LogitsProcessor

GOLDEN = 0x9E3779B97F4A7C15 - (1 << 64)

BLOCK = 256
"""Tokens whose probabilities are added up before anything is looked for."""


def row_keys(seeds: Tensor, completions: int) -> Tensor:
    """[B·K] int64: a key of its own for completion k of each prompt, from the prompt's seed, [B] int64."""
    return mix(seeds[:, None] + torch.arange(1, completions + 1) * GOLDEN).flatten()


def uniform(keys: Tensor, position: int) -> Tensor:
    """A number in [0, 1) for each row, [N] float64: number `position` of splitmix64's stream from the row's key.

    Source: Steele, Lea & Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014.
    """
    bits = mix(keys + torch.full_like(keys, position + 1) * GOLDEN)
    return (bits >> 12 & (1 << 52) - 1).double() * 2.0**-52


def inverse_cdf(scores: Tensor, at: Tensor) -> tuple[Tensor, Tensor]:
    """The token of each row where the cumulated softmax of its scores passes a number, and the log of what normalises them.

    With uniform numbers these are samples from the softmax. It replaces adding Gumbel noise to every score, which takes a hash and
    two logarithms for each token of the vocabulary: with 49,152 tokens that was half of the time of a step of SmolLM2-135M.
    Either is a function of (seed, row, position) alone. What differs is how much two models have in common that are given the same
    noise: Gumbel noise lets them choose the same token unless one is likelier by more than the noise; a number in [0, 1) unless
    what was cumulated before it differs by as much as the token is likely. Policies that are near each other mostly agree by both.

    Args:
        scores: [N, V]; −∞ for tokens that must not be drawn, which never are.
        at: [N] float64 in [0, 1).

    Returns:
        Tokens [N] int64, and log Σ exp(scores) [N].
    """
    largest = scores.amax(-1, keepdim=True)
    # Two levels: blocks of tokens, then the tokens of one block. Sums over all of the vocabulary are double, so that no token's
    # probability is lost in rounding, but few.
    weights = (scores - largest).exp_()
    if over := scores.shape[-1] % BLOCK:
        weights = pad(weights, (0, BLOCK - over))
    weights = weights.unflatten(-1, (-1, BLOCK))
    blocks = weights.sum(-1).double()
    cumulated = blocks.cumsum(-1)
    total = cumulated[:, -1:]
    target = at[:, None] * total
    block = torch.searchsorted(cumulated, target, right=True).clamp(
        max=blocks.shape[-1] - 1
    )  # of NaN it finds no place
    within = (target - cumulated.gather(-1, block)) / blocks.gather(-1, block) + 1
    inside = weights[torch.arange(len(scores), device=scores.device), block[:, 0]].double().cumsum(-1)
    token = torch.searchsorted(inside, within.clamp(0, 1 - 2**-52) * inside[:, -1:], right=True)
    token = (block * BLOCK + token).clamp(max=scores.shape[-1] - 1)
    return token[:, 0], (largest + total.log().to(scores.dtype))[:, 0]


def mix(x: Tensor) -> Tensor:
    """splitmix64's finaliser on int64, whose products wrap and whose right shift must be made logical."""
    for shift, factor in ((30, 0xBF58476D1CE4E5B9 - (1 << 64)), (27, 0x94D049BB133111EB - (1 << 64))):
        x = (x ^ (x >> shift & (1 << 64 - shift) - 1)) * factor
    return x ^ (x >> 31 & (1 << 33) - 1)


class RowNoise(LogitsProcessor):
    """For `model.generate`: leaves of each row's scores only the token that the row's noise draws.

    So a completion does not depend on its companions in the batch, on the padding, the number of processes, or a resume.

    Args:
        keys: [N] int64, one for each row.
        start: length of the padded prompts; the position counts from there.
    """

    def __init__(self, keys: Tensor, start: int):
        self.keys = keys
        self.start = start

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """[N, V]: 0 for one token, −∞ for the others."""
        token, _ = inverse_cdf(scores, uniform(self.keys.to(scores.device), input_ids.shape[1] - self.start))
        return torch.full_like(scores, -torch.inf).scatter(-1, token[:, None], 0.0)
