"""Rows that look at one copy of their prompt's keys and values read what rows with copies of their own read."""

import logging

import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM

from prefopt.policy import Policy
from prefopt.policy.decode.reading import Reading, SharedReading, reading_of

WIDE = {"initializer_range": 0.2}
SHARED = {
    "Llama": {},
    "Llama grouped": {"num_attention_heads": 4, "num_key_value_heads": 2},
    "Qwen2": {},
    "Qwen3": {"head_dim": 8},
    "GPT2": {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64},
    "GPTNeoX": {},
    "Phi": {},
    "Granite": {"logits_scaling": 3.0},
    "Olmo2": {},
    "Mixtral": {"num_local_experts": 4, "experts_implementation": "eager"},
}
ALONE = {
    "Mistral": {"sliding_window": 5},
    "Gemma2": {"head_dim": 8, "sliding_window": 5, "query_pre_attn_scalar": 8},
    "Bloom": {"n_layer": 2, "n_head": 2},
}
PROMPTS = [[3, 4, 5, 6, 7], [8, 9], [10, 11, 12, 13]]


@pytest.fixture
def make_policy(tiny):
    def make(name: str, dtype: torch.dtype = torch.float32) -> Policy:
        torch.manual_seed(0)
        changes = {**tiny, **WIDE, **(SHARED | ALONE)[name]}
        config = getattr(transformers, f"{name.split()[0]}Config")(**changes)
        return Policy(AutoModelForCausalLM.from_config(config).to(dtype).eval())

    return make


@torch.no_grad()
def read(reading: Reading) -> torch.Tensor:
    """Logits of three rows a prompt over eight steps, in which rows leave, at last all of one prompt."""
    tokens = torch.randint(1, 30, (9, 9), generator=torch.Generator().manual_seed(1))
    rows, found = torch.arange(9), [reading.start(PROMPTS, 3)]
    for place in range(8):
        if place in (2, 5):
            kept = torch.tensor([0, 2, 3, 4, 5, 8] if place == 2 else [0, 1, 5])
            reading.keep(kept)
            rows = rows[kept]
        found.append(reading.step(tokens[rows, place]))
    return torch.cat(found)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", SHARED)
def test_shared_prompts_are_exact(name, dtype, make_policy):
    if (name, dtype) == ("Mixtral", torch.bfloat16):
        pytest.skip("a rounding sends a token to another expert, so the comparison is not passed")
    policy = make_policy(name, dtype)
    reading = reading_of(policy, PROMPTS, 3)
    assert type(reading) is SharedReading
    tolerance = {torch.float64: 1e-10, torch.float32: 1e-4, torch.bfloat16: 0.1}[dtype]
    alone = read(Reading(make_policy(name, dtype)))
    assert (read(reading) - alone).abs().max() <= tolerance * max(1.0, float(alone.abs().max()))


@pytest.mark.parametrize("name", ALONE)
def test_others_have_copies(name, make_policy):
    """A window, scores that are capped, distances in place of positions."""
    assert type(reading_of(make_policy(name), PROMPTS, 3)) is Reading


def test_one_row_a_prompt_shares_nothing(make_policy):
    assert type(reading_of(make_policy("Llama"), PROMPTS, 1)) is Reading


def test_longer_prompts_are_compared_again(make_policy, monkeypatch):
    compared = []
    monkeypatch.setattr("prefopt.policy.decode.reading._doubt", lambda policy, prompts: compared.append(prompts) or "")
    for length in (3, 6, 7, 4):
        reading_of(make_policy("Llama"), [[1], [2] * length], 2)
    assert compared == [[[1], [2] * 3], [[1], [2] * 7]]


def test_what_is_not_exact_is_found_out_once_and_said(make_policy, monkeypatch, caplog):
    monkeypatch.setattr("prefopt.policy.rows.attention.torch.sigmoid", torch.ones_like)  # sees the prompt alone
    with caplog.at_level(logging.INFO, "prefopt"):
        assert type(reading_of(make_policy("Llama"), PROMPTS, 3)) is Reading
        assert type(reading_of(make_policy("Llama"), PROMPTS, 3)) is Reading
    assert [record.message for record in caplog.records if "shared prompts" in record.message] == [
        record.message for record in caplog.records if "logits differ" in record.message
    ]
    assert caplog.text.count("logits differ") == 1
