"""Reading rows that are being written: a causal LM reads prompts once, and then one token of each row at every step."""

import inspect
import logging
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from prefopt.policy.decode.growing import GrowingLayer, growing_cache
from prefopt.policy.policy import Policy
from prefopt.policy.rows import verified
from prefopt.policy.rows.attention import Prompts, use_segment_attention
from prefopt.policy.rows.prefix_sharing import refuse_windows
from prefopt.support.out_of_memory import reraise_out_of_memory

log = logging.getLogger(__name__)

NEVER = -1
"""In place of the longest prompt compared so far: shared prompts are not exact with this kind of model."""


class Reading:
    """The state of a causal LM that reads N rows, each with keys and values of its own for its prompt."""

    def __init__(self, policy: Policy):
        self.policy = policy
        self.places = "position_ids" in inspect.signature(self.policy.causal.forward).parameters

    def start(self, prompts: Sequence[Sequence[int]], copies: int) -> Tensor:
        """Read each prompt once; logits [N, V] of what follows in `copies` rows of each."""
        longest, device = max(map(len, prompts)), self.policy.device
        ids = torch.tensor([[0] * (longest - len(prompt)) + list(prompt) for prompt in prompts], device=device)
        lengths = torch.tensor([len(prompt) for prompt in prompts], device=device)
        self.mask = (torch.arange(longest, device=device) >= longest - lengths[:, None]).long()
        self.cache = growing_cache(self.policy.causal.config)
        logits = self._read(ids, (self.mask.cumsum(-1) - 1).clamp(min=0))
        self.cache.batch_repeat_interleave(copies)
        self.mask = self.mask.repeat_interleave(copies, 0)
        return logits.repeat_interleave(copies, 0)

    def keep(self, rows: Tensor) -> None:
        """Go on with these rows alone."""
        self.cache.batch_select_indices(rows)
        self.mask = self.mask[rows]

    def step(self, tokens: Tensor) -> Tensor:
        """Read one token of each row, [N]; logits [N, V] of the next."""
        self.mask = torch.cat([self.mask, torch.ones_like(self.mask[:, :1])], 1)
        return self._read(tokens[:, None], self.mask.sum(-1, keepdim=True) - 1)

    def _read(self, ids: Tensor, positions: Tensor) -> Tensor:
        more: dict[str, Any] = {"position_ids": positions} if self.places else {}
        logits = self.policy.model(
            input_ids=ids,
            attention_mask=self.mask,
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=1,
            **more,
        ).logits[:, -1]
        return logits if logits.dtype == torch.float64 else logits.float()


class SharedReading(Reading):
    """The same with one copy of a prompt's keys and values for all its rows, which takes less memory and time."""

    def start(self, prompts: Sequence[Sequence[int]], copies: int) -> Tensor:
        """Read each prompt once; logits [N, V] of what follows in `copies` rows of each."""
        logits = super().start(prompts, 1)
        lengths = [len(prompt) for prompt in prompts]
        held: list[Any] = self.cache.layers
        self.owner = torch.arange(len(prompts)).repeat_interleave(copies)
        self.prompts = Prompts(((layer.keys, layer.values) for layer in held), lengths, self.owner)
        self.cache = growing_cache(self.policy.causal.config)
        self.read = torch.tensor(lengths, device=self.policy.device).repeat_interleave(copies)
        return logits.repeat_interleave(copies, 0)

    def keep(self, rows: Tensor) -> None:
        """Go on with these rows alone, in ascending order."""
        self.cache.batch_select_indices(rows)
        self.owner, self.read = self.owner[rows.cpu()], self.read[rows]
        self.prompts.follow(self.owner)

    def step(self, tokens: Tensor) -> Tensor:
        """Read one token of each row, [N]; logits [N, V] of the next."""
        logits = self.policy.model(
            input_ids=tokens[:, None],
            # Of four dimensions, as of a mask that is to be taken as it is; this attention does not look at it.
            attention_mask=torch.zeros(1, 1, 1, 1),
            position_ids=self.read[:, None],
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=1,
            prompts=self.prompts,
        ).logits[:, -1]
        self.read = self.read + 1
        return logits if logits.dtype == torch.float64 else logits.float()


@torch.no_grad()
def reading_of(policy: Policy, prompts: Sequence[Sequence[int]], copies: int) -> Reading:
    """A `SharedReading` where prompts have several rows and the model gives the same logits with it, else a `Reading`.

    The logits are compared once in a process, and again for prompts more than twice as long as any compared before.
    """
    backbone = getattr(policy.causal, policy.causal.base_model_prefix)
    layers = growing_cache(policy.causal.config).layers
    if copies < 2 or not use_segment_attention(backbone) or not all(type(layer) is GrowingLayer for layer in layers):
        return Reading(policy)
    kind = verified.key("shared prompts", backbone, policy.device)
    ranked = sorted(prompts, key=len)
    compared, longest = verified.longest(kind), len(ranked[-1])
    if compared != NEVER and longest > 2 * compared:
        doubt = _doubt(policy, [ranked[0], ranked[-1]])
        compared = NEVER if doubt else longest
        verified.remember(kind, compared)
        if doubt:
            log.info("%s cannot write from shared prompts (%s)", type(backbone).__name__, doubt)
    return Reading(policy) if compared == NEVER else SharedReading(policy)


def _doubt(policy: Policy, prompts: Sequence[Sequence[int]]) -> str:
    """What is wrong with shared prompts over a few steps in which a row leaves; empty if they can be used."""
    logits: list[list[Tensor]] = [[], []]
    tokens = torch.tensor([[prompt[0], prompt[-1]] for prompt in prompts], device=policy.device).flatten()
    rows = torch.arange(1, len(tokens), device=policy.device)
    try:
        refuse_windows(policy.causal.config.get_text_config())
        for steps, reading in zip(logits, (SharedReading(policy), Reading(policy)), strict=True):
            steps.append(reading.start(prompts, 2))
            steps.append(reading.step(tokens))
            reading.keep(rows)
            steps.append(reading.step(tokens[rows]))
    except (AttributeError, TypeError, ValueError, RuntimeError, KeyError) as error:
        reraise_out_of_memory(error)
        return f"{type(error).__name__}: {error}"
    shared, alone = (torch.cat(steps) for steps in logits)
    low = torch.is_autocast_enabled(policy.device.type) or torch.finfo(policy.causal.dtype).bits < 32
    tolerance = (2**-5 if low else 1e-4) * max(alone.abs().max().item(), 1.0)
    worst = (shared - alone).abs().max().item()
    return "" if worst <= tolerance else f"logits differ by {worst:.2g}"
