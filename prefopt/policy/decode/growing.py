"""A cache of keys and values with room for further tokens, so that those it holds need not be copied for each new one."""

from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

ROOM = 32
"""Tokens that there is room for when a layer's memory is new; a quarter of its length where that is more."""


def growing_cache(config: Any) -> DynamicCache:
    """The cache of an architecture, its layers of full attention with room; windows, indexers and states stay as they are."""
    cache = DynamicCache(config=config)
    cache.layers = [GrowingLayer() if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache


class GrowingLayer(DynamicLayer):
    """`DynamicLayer` copies all keys and values for every token; this one copies them only when it has no room left.

    `keys` and `values` are views of the first tokens in the memory. If anything else assigns them (when rows leave or are
    repeated), the memory is out of date, and the next token makes a new one.
    """

    def __init__(self) -> None:
        super().__init__()
        self._memory: list[Tensor] = []
        self._view: Tensor | None = None

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Take up the tokens, [N, heads, n, D] each; keys and values of all so far."""
        length = self.get_seq_length()
        if not length:
            return super().update(key_states, value_states, *args, **kwargs)
        assert self.keys is not None and self.values is not None
        end = length + key_states.shape[-2]
        if self.keys is not self._view or end > self._memory[0].shape[-2]:
            self._memory = [_with_room(held, length, end) for held in (self.keys, self.values)]
        for memory, new in zip(self._memory, (key_states, value_states), strict=True):
            memory[..., length:end, :] = new
        self.keys, self.values = (memory[..., :end, :] for memory in self._memory)
        self._view = self.keys
        return self.keys, self.values


def _with_room(held: Tensor, length: int, end: int) -> Tensor:
    """A longer memory that begins with the same tokens; the rest of it is not initialised."""
    memory = torch.empty(
        *held.shape[:-2], end + max(ROOM, end // 4), held.shape[-1], dtype=held.dtype, device=held.device
    )
    memory[..., :length, :] = held
    return memory
