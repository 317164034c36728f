"""Room for tokens to come changes when keys and values are copied, and nothing else."""

import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM, DynamicCache
from transformers.cache_utils import DynamicLayer

from prefopt.policy.decode.growing import ROOM, GrowingLayer, growing_cache

KINDS = ["sliding_attention", "full_attention"]
WINDOW = {"head_dim": 8, "sliding_window": 5}
ARCHITECTURES = {
    "Llama": {},
    "Qwen3": {"head_dim": 8},
    "Mistral": WINDOW,
    "Gemma2": WINDOW | {"query_pre_attn_scalar": 8, "layer_types": KINDS},
    "Gemma3Text": WINDOW | {"query_pre_attn_scalar": 8, "layer_types": KINDS},
    "GPT2": {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64},
    "GPTNeoX": {},
    "Phi": {},
    "Olmo2": {},
    "Bloom": {"n_layer": 2, "n_head": 2},
    "Mixtral": {"num_local_experts": 4, "experts_implementation": "eager"},
}
EMPTY = 10**6
"""What unwritten memory is made to hold, so that a read of it would show."""


@pytest.fixture
def model(request, tiny):
    torch.manual_seed(0)
    config = getattr(transformers, f"{request.param}Config")(**tiny | ARCHITECTURES[request.param])
    return AutoModelForCausalLM.from_config(config).eval()


@torch.no_grad()
def said(model, cache) -> torch.Tensor:
    """Logits of a prompt, of two copies of it, and of one row that is left, for more tokens than there is room for at first."""
    tokens = torch.randint(1, 30, (4, ROOM + 16), generator=torch.Generator().manual_seed(1))
    found = [model(input_ids=tokens[:2, :7], past_key_values=cache, use_cache=True).logits[:, -1]]
    cache.batch_repeat_interleave(2)
    rows = torch.arange(4)
    for place in range(7, tokens.shape[1]):
        if place in (10, ROOM + 10):
            cache.batch_select_indices(rows[: len(rows) - 1])
            rows = rows[:-1]
        step = tokens[rows, place, None]
        found.append(model(input_ids=step, past_key_values=cache, use_cache=True).logits[:, -1])
    return torch.cat(found)


@pytest.mark.parametrize("model", ARCHITECTURES, indirect=True)
def test_a_model_says_the_same_to_the_last_bit(model, monkeypatch):
    monkeypatch.setattr(torch, "empty", lambda *shape, **more: torch.full(shape, EMPTY, **more))
    assert torch.equal(said(model, growing_cache(model.config)), said(model, DynamicCache(config=model.config)))


@pytest.mark.parametrize("model", ["Gemma3Text"], indirect=True)
def test_layers_with_a_window_stay_as_they_are(model):
    kinds = [type(layer) for layer in growing_cache(model.config).layers]
    assert kinds == [
        type(layer) if type(layer) is not DynamicLayer else GrowingLayer
        for layer in DynamicCache(config=model.config).layers
    ]
    assert kinds[1] is GrowingLayer is not kinds[0]


def test_tokens_are_copied_when_the_room_is_used_up():
    layer, memories = GrowingLayer(), set()
    for _ in range(1 + 3 * ROOM):
        layer.update(torch.ones(2, 1, 1, 4), torch.ones(2, 1, 1, 4))
        memories.add(layer.keys.untyped_storage().data_ptr())
    assert layer.keys.shape == (2, 1, 1 + 3 * ROOM, 4)
    assert len(memories) <= 4
