"""What a model keeps for its backward pass, found out by its own forward pass on tensors that have shapes and no numbers.

One and two layers at several lengths tell what there is of each token in each layer, of each token outside of the layers, and of
each layer whatever the tokens, such as copies of weights in 16 bits. It is what the architecture, the adapter, the arithmetic and
gradient checkpointing make of it, with no formula of ours.
"""

import copy
import logging
import warnings
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import AutoModelForCausalLM, PretrainedConfig

from prefopt import recipe
from prefopt.policy.adapters import adapted
from prefopt.policy.finding import model_config

log = logging.getLogger(__name__)

TOKENS = 64


class Kept(NamedTuple):
    """Bytes that are kept for the backward pass.

    Attributes:
        by_token_and_layer: of each token in each layer.
        by_token: of each token, outside of the layers.
        by_layer: of each layer, whatever the tokens.
        recomputed: of each token in the one layer that gradient checkpointing computes again at a time; else 0.
    """

    by_token_and_layer: float
    by_token: float
    by_layer: float
    recomputed: float = 0.0

    def of(self, tokens: float, layers: float) -> float:
        """Of so many tokens in a model of so many layers, without what is computed again."""
        return tokens * (layers * self.by_token_and_layer + self.by_token) + layers * self.by_layer


def kept(name: str, policy: recipe.Policy, low: bool) -> Kept | None:
    """What a model keeps, by its configuration; None where its forward pass cannot be followed in this way.

    Args:
        name: a folder or hub id with weights of its own, whose configuration is on disk.
        policy: says how it is trained.
        low: whether arithmetic is in 16 bits, bf16 or fp16, on weights of more.
    """
    try:
        measure = partial(_saved, model_config(name, policy.remote_code), policy, low)
        found = _fitted(measure, policy.gradient_checkpointing)
        if not policy.gradient_checkpointing:
            return found
        whole = _fitted(measure, False)
        return found._replace(recomputed=whole.by_token_and_layer)
    except Exception as error:  # an architecture can do anything in its forward pass
        log.info("what %s keeps for its backward pass is not known: %s", name, error)
        return None


def _fitted(measure: Any, checkpointing: bool) -> Kept:
    """Of one and two layers, which tell a layer from the rest, at three lengths."""
    sizes = [TOKENS, 2 * TOKENS, 3 * TOKENS]
    one, two = ([measure(checkpointing, layers, tokens) for tokens in sizes] for layers in (1, 2))
    in_layer, fixed = _linear([b - a for a, b in zip(one, two, strict=True)])
    outside, _ = _linear([2 * a - b for a, b in zip(one, two, strict=True)])
    return Kept(in_layer, outside, fixed)


def _linear(sums: Sequence[float]) -> tuple[float, float]:
    """Bytes of each token, and those of none.

    What is squared in the tokens is left out: transformers makes a mask for tensors without numbers, which no run of ours has.
    """
    first, second, third = sums
    squared = (third - 2 * second + first) / (2 * TOKENS**2)
    by_token = (second - first) / TOKENS - 3 * squared * TOKENS
    return by_token, first - by_token * TOKENS - squared * TOKENS**2


def _saved(
    config: PretrainedConfig, policy: recipe.Policy, low: bool, checkpointing: bool, layers: int, tokens: int
) -> int:
    """Bytes that autograd saves in a forward pass without the head, weights aside."""
    backbone = _backbone(config, policy, checkpointing, layers)
    saved: dict[int, tuple[int, Tensor]] = {}
    with FakeTensorMode():
        state = {
            name: torch.empty(weight.shape, dtype=weight.dtype).requires_grad_(weight.requires_grad)
            for name, weight in backbone.named_parameters()
        }
        own = {weight.untyped_storage()._cdata for weight in state.values()}
        state |= {name: torch.empty(buffer.shape, dtype=buffer.dtype) for name, buffer in backbone.named_buffers()}

        def pack(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            if storage._cdata not in own:
                saved[storage._cdata] = storage.nbytes(), tensor  # held, so that its address is not another's
            return tensor

        given = {"input_ids": torch.zeros(1, tokens, dtype=torch.long), "use_cache": False}
        hooks = torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor)
        with hooks, torch.autocast("cpu", torch.bfloat16, enabled=low):
            output = torch.func.functional_call(backbone, state, (), given)  # held, and with it the graph
    del output
    return sum(size for size, _ in saved.values())


def _backbone(config: PretrainedConfig, policy: recipe.Policy, checkpointing: bool, layers: int) -> Any:
    """The model without its head, of so many layers, its weights on no device."""
    config = copy.deepcopy(config)
    text = config.get_text_config()
    text.num_hidden_layers = layers
    if getattr(text, "layer_types", None):
        text.layer_types = text.layer_types[:layers]
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model: Any = AutoModelForCausalLM.from_config(
            config, dtype=getattr(torch, policy.dtype), attn_implementation=policy.attention
        )
        model.name_or_path = "of this configuration"  # its weights are on disk
        adapter: Any = adapted(model, policy, 0, "CAUSAL_LM")
        model = adapter.get_base_model() if policy.adapter is not None else model
        if checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return model.base_model.train()
