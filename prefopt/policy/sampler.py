"""Drawing completions with transformers, with noise that belongs to the row."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from prefopt.policy.policy import Policy
from prefopt.recipe import Sampling
from prefopt.types import Sampled


class RowNoise(LogitsProcessor):
    """Gumbel noise that is a function of (seed of the row, position, token) and of nothing else.

    The largest of logits + Gumbel noise is a sample from softmax(logits) (Gumbel 1954; Maddison et al., arXiv 1411.0030). So a
    completion does not depend on its companions in the batch, on the padding, the number of processes, or a resume.

    Args:
        seeds: [N] int64, one for each row.
        start: length of the padded prompts; the position counts from there.
    """

    def __init__(self, seeds: Tensor, start: int):
        self.seeds = seeds
        self.start = start

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """[N, V] scores with their noise."""
        noise = gumbel(self.seeds.to(scores.device), input_ids.shape[1] - self.start, scores.shape[1])
        return scores + noise.to(scores.dtype)


def gumbel(seeds: Tensor, position: int, vocabulary: int) -> Tensor:
    """Standard Gumbel noise [N, V] in float64, by counting: a splitmix64 hash of (seed, position, token).

    Source of the hash: Steele, Lea & Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014.
    """
    tokens = torch.arange(vocabulary, device=seeds.device)
    bits = _mix(_mix(_mix(seeds + torch.full_like(seeds, position) * _GOLDEN))[:, None] + tokens * _GOLDEN)
    uniform = ((bits >> 11 & (1 << 53) - 1).double() + 0.5) * 2.0**-53
    return -torch.log(-torch.log1p(-uniform))


_GOLDEN = 0x9E3779B97F4A7C15 - (1 << 64)


def _mix(x: Tensor) -> Tensor:
    """splitmix64's finaliser on int64, whose products wrap and whose right shift must be made logical."""
    for shift, factor in ((30, 0xBF58476D1CE4E5B9 - (1 << 64)), (27, 0x94D049BB133111EB - (1 << 64))):
        x = (x ^ (x >> shift & (1 << 64 - shift) - 1)) * factor
    return x ^ (x >> 31 & (1 << 33) - 1)


class TransformersSampler:
    """The `Sampler` that calls `model.generate`, in micro-batches.

    Args:
        rows: completions drawn at a time; memory only.
    """

    def __init__(self, rows: int = 128):
        self.rows = rows

    @torch.no_grad()
    def __call__(
        self, model: Policy, prompt_ids: Sequence[Sequence[int]], completions: int, settings: Sampling, seeds: Tensor
    ) -> Sampled:
        """Draw `completions` of each prompt.

        Args:
            model: a policy with a tokenizer.
            prompt_ids: B prompts as token ids.
            completions: K.
            settings: temperature (0 is greedy), top_p, top_k, max_tokens.
            seeds: [B] int64; completion k of a prompt draws its noise from (seed, k).

        Returns:
            Completions [B, K, T], T the longest of them; EOS is part of a completion that has one.
        """
        keys = _mix(seeds[:, None] + torch.arange(1, completions + 1) * _GOLDEN).flatten()  # [B·K]
        rows = [prompt for prompt in prompt_ids for _ in range(completions)]
        order = sorted(range(len(rows)), key=lambda i: len(rows[i]))  # prompts of like length pad each other least
        drawn: list[list[int]] = [[] for _ in rows]
        was_training = model.training
        model.eval()
        try:
            for start in range(0, len(order), self.rows):
                chunk = order[start : start + self.rows]
                found = _generate(model, [rows[i] for i in chunk], settings, keys[chunk])
                for index, tokens in zip(chunk, found, strict=True):
                    drawn[index] = tokens
        finally:
            model.train(was_training)
        return _padded(drawn, len(prompt_ids), completions)


def _generate(model: Policy, prompts: Sequence[Sequence[int]], settings: Sampling, keys: Tensor) -> list[list[int]]:
    tokenizer = model.tokenizer
    assert tokenizer is not None
    longest = max(len(prompt) for prompt in prompts)
    ids = torch.tensor([[0] * (longest - len(prompt)) + list(prompt) for prompt in prompts], device=model.device)
    mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts], device=model.device)
    ends = end_tokens(model)
    config = GenerationConfig(
        max_new_tokens=settings.max_tokens,
        do_sample=False,  # the noise does it
        eos_token_id=ends or None,
        pad_token_id=ends[0] if ends else 0,
    )
    with _no_defaults(model):
        causal: Any = model.causal
        output = causal.generate(
            input_ids=ids,
            attention_mask=mask,
            generation_config=config,
            logits_processor=_processors(settings, keys, longest),
        )
    return [_until_end(row, ends) for row in output[:, longest:].tolist()]


@contextmanager
def _no_defaults(model: Policy) -> Iterator[None]:
    """Without the model's own generation settings: a repetition penalty, say, would draw from another distribution."""
    own, model.causal.generation_config = model.causal.generation_config, GenerationConfig()
    try:
        yield
    finally:
        model.causal.generation_config = own


def _processors(settings: Sampling, keys: Tensor, start: int) -> LogitsProcessorList:
    if settings.temperature == 0:
        return LogitsProcessorList()
    processors: list[LogitsProcessor] = []
    if settings.temperature != 1:
        processors.append(TemperatureLogitsWarper(settings.temperature))
    if settings.top_k:
        processors.append(TopKLogitsWarper(settings.top_k))
    if settings.top_p < 1:
        processors.append(TopPLogitsWarper(settings.top_p))
    return LogitsProcessorList([*processors, RowNoise(keys, start)])


def end_tokens(model: Policy) -> list[int]:
    """The ids that end a completion: the tokenizer's EOS first, and those of the model's generation settings."""
    assert model.tokenizer is not None
    own = model.causal.generation_config.eos_token_id if model.causal.generation_config else None
    listed = own if isinstance(own, list) else [own]
    return list(dict.fromkeys(int(t) for t in [model.tokenizer.eos_token_id, *listed] if t is not None))


def _until_end(tokens: list[int], ends: list[int]) -> list[int]:
    """Up to the first end token, which is kept: the policy wrote it."""
    stop = next((i for i, token in enumerate(tokens) if token in ends), len(tokens) - 1)
    return tokens[: stop + 1]


def _padded(drawn: list[list[int]], prompts: int, completions: int) -> Sampled:
    longest = max((len(tokens) for tokens in drawn), default=1)
    ids = torch.tensor([tokens + [0] * (longest - len(tokens)) for tokens in drawn])
    mask = torch.tensor([[True] * len(tokens) + [False] * (longest - len(tokens)) for tokens in drawn])
    return Sampled(ids.view(prompts, completions, longest), mask.view(prompts, completions, longest))
