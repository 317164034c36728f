"""Rows packed for FlexAttention: which blocks it computes, what each token sees, and when it is given up."""

import logging

import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.nn.attention.flex_attention import create_block_mask
from transformers import AutoModelForCausalLM, LlamaConfig

from prefopt import Batch, Needs
from prefopt.policy import Policy
from prefopt.policy.rows import flex
from prefopt.policy.rows.flex import BlockSegments, packed_in_blocks
from prefopt.policy.rows.layout import packed

pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")
GROUPS = [(300, [140, 5, 128]), (84, [40]), (1, [200, 3]), (130, [])]
"""Segments that fill blocks, that begin and end within one, and of which several share one."""


def token_by_token(segments: BlockSegments, window: int | None) -> torch.Tensor:
    """[L, L], what a token sees, from the definition."""
    known = [(-1, 0, place) for place in range(segments.length)]
    place = 0
    for group, (prompt, completions) in enumerate(segments.groups):
        tokens = [(group, 0, t) for t in range(prompt)]
        tokens += [(group, k, prompt + t) for k, size in enumerate(completions, 1) for t in range(size)]
        known[place : place + len(tokens)] = tokens
        place += len(tokens)
    group, branch, position = torch.tensor(known).T
    sees = (group[:, None] == group) & ((branch == 0) | (branch == branch[:, None])) & (position[:, None] >= position)
    sees &= torch.ones_like(sees).tril()
    return sees if window is None else sees & (position[:, None] - position < window)


@pytest.mark.parametrize("window", [None, 1, 60, 129, 400])
def test_blocks_are_those_of_the_definition(window):
    segments = BlockSegments(GROUPS, length=1152)
    mask, sees = segments.block_mask(window, torch.device("cpu")), token_by_token(segments, window)
    places = torch.arange(segments.length)
    zero = torch.zeros((), dtype=torch.int)
    assert torch.equal(mask.mask_mod(zero, zero, places[:, None], places), sees)
    expected = create_block_mask(mask.mask_mod, None, None, segments.length, segments.length, "cpu")
    names = ["kv_num_blocks", "full_kv_num_blocks", "q_num_blocks", "full_q_num_blocks"]
    for name in names:
        assert torch.equal(getattr(mask, name), getattr(expected, name)), name
        listed = name.replace("num_blocks", "indices")
        for row, size in enumerate(getattr(mask, name)[0, 0].tolist()):
            found, wanted = (getattr(one, listed)[0, 0, row, :size] for one in (mask, expected))
            assert torch.equal(found, wanted), listed


def test_what_is_kept_of_a_row_grows_with_it():
    """Three numbers for each token, and four tables of blocks with one for each of their 16,384 pairs of tokens."""
    segments = BlockSegments([(64, [64, 64, 64])] * 128, length=2**15)
    mask = segments.block_mask(None, torch.device("cpu"))
    tables = [value for value in mask.as_tuple() if isinstance(value, torch.Tensor)]
    assert sum(table.numel() for table in tables) < 5 * (2**15 / flex.BLOCK) ** 2
    closure = [cell.cell_contents for cell in mask.mask_mod.__closure__]
    assert sum(one.numel() for one in closure if isinstance(one, torch.Tensor)) == 3 * 2**15


def test_one_kernel_serves_rows_of_all_lengths():
    """Counted where torch makes graphs, before any kernel; two heads and two blocks are a coincidence that it looks into."""
    counter = CompileCounterWithBackend("eager")
    attend = torch.compile(flex.flex_attention, backend=counter, **flex.COMPILING)
    for length in (384, 256, 640, 2048, 896, 1152):
        segments = BlockSegments([(50, [20, length - 120]), (20, [10])], length=length)
        query, key, value = (torch.zeros(1, heads, length, 16) for heads in (4, 2, 2))
        with torch.no_grad():
            attend(query, key, value, block_mask=segments.block_mask(None, query.device), enable_gqa=True)
    assert 1 <= counter.frame_count <= 2


def batch(completions: int) -> Batch:
    """Three prompts longer than a block together; some completions are absent, and some have gaps that tools wrote."""
    draw = torch.Generator().manual_seed(completions)
    mask = torch.rand(3, completions, 20, generator=draw) < 0.8
    mask[1, 0] = False
    prompts = [torch.randint(1, 30, (size,), generator=draw).tolist() for size in (170, 3, 90)]
    return Batch(tuple(map(tuple, prompts)), torch.randint(1, 30, mask.shape, generator=draw), mask)


def llama(dtype: torch.dtype = torch.float64, **changes) -> AutoModelForCausalLM:
    torch.manual_seed(0)
    sizes = {"vocab_size": 30, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "initializer_range": 0.2}
    return AutoModelForCausalLM.from_config(LlamaConfig(**sizes | heads | changes)).to(dtype)


@pytest.mark.parametrize("completions", [1, 2, 8])
def test_states_and_gradients_are_those_of_plain_rows(completions, in_blocks, gradients):
    model = llama()
    if completions == 2:  # attends once more in the backward pass, by the same blocks
        model.train().gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    policy, rows, results = Policy(model), batch(completions), []
    weights = torch.randn(rows.mask.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for shares in (True, False):
        policy._prefix_sharing.shares = shares
        logps = policy(rows, Needs()).logps
        results.append((logps.detach(), gradients(policy, (logps * weights).sum())))
    assert policy._prefix_sharing.packs
    assert policy._prefix_sharing._compared > flex.BLOCK
    (found, slopes), (expected, plain) = results
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-9)
    assert (slopes - plain).norm() < 1e-6 * plain.norm()  # norms and rotations are float32 in a model of float64, too


def test_a_row_is_padded_to_whole_blocks():
    rows = batch(2)
    plain, blocks = packed(rows, torch.device("cpu")), packed_in_blocks(rows, torch.device("cpu"))
    length = plain.input_ids.shape[1]
    assert blocks.input_ids.shape[1] % flex.BLOCK == 0
    assert torch.equal(blocks.input_ids[:, :length], plain.input_ids)
    assert blocks.tokens() == (length, blocks.input_ids.shape[1])
    assert torch.equal(blocks.places, plain.places)


@pytest.mark.parametrize("broken", ["forward", "backward"])
def test_a_kernel_that_is_not_exact_is_given_up(broken, in_blocks, monkeypatch, caplog):
    """In favour of masks, which share the prompt as well."""
    exact = flex.flex_attention

    def attend(*given, **others):
        output = exact(*given, **others)
        if broken == "forward":
            return output + 0.01
        output.register_hook(lambda gradient: gradient * 1.1) if output.requires_grad else None
        return output

    monkeypatch.setattr(flex, "flex_attention", attend)
    policy = Policy(llama())
    with caplog.at_level(logging.INFO, "prefopt"):
        policy(batch(2), Needs())
    assert not policy._prefix_sharing.packs
    assert policy._prefix_sharing.shares
    assert ("states" if broken == "forward" else "gradients") + " differ" in caplog.text


def test_a_reference_is_not_differentiated(in_blocks):
    policy = Policy(llama().requires_grad_(False))
    assert not policy(batch(2), Needs()).logps.requires_grad
    assert policy._prefix_sharing.packs


def test_dropout_of_attention_is_left_to_masks(in_blocks):
    policy = Policy(llama(attention_dropout=0.1).train())
    policy(batch(2), Needs())
    assert policy.causal.config._attn_implementation == "sdpa"


def test_bf16_by_autocast(in_blocks):
    """Qwen3's norm of queries and keys returns more bits than it gets, and values have fewer."""
    torch.manual_seed(0)
    heads, segments = torch.randn(3, 1, 2, flex.BLOCK, 8), BlockSegments([(100, [28])], length=flex.BLOCK)
    query, key, value = heads
    exact, _ = flex.flex_segment_attention(nn.Module(), query, key, value, None, segments=segments)
    with torch.autocast("cpu", torch.bfloat16):
        low, _ = flex.flex_segment_attention(nn.Module(), query, key, value.bfloat16(), None, segments=segments)
    assert low.dtype == torch.bfloat16
    torch.testing.assert_close(low.float(), exact, rtol=0.02, atol=0.02)


def test_what_it_does_not_know_is_refused():
    heads, segments = torch.zeros(1, 1, flex.BLOCK, 8), BlockSegments([(flex.BLOCK, [])], length=flex.BLOCK)
    for asked in ({"softcap": 50.0}, {"s_aux": heads}, {"dropout": 0.1}):
        with pytest.raises(ValueError, match="its attention has"):
            flex.flex_segment_attention(nn.Module(), heads, heads, heads, None, segments=segments, **asked)


def test_a_trained_model_is_compared_after_a_reference_of_its_kind(in_blocks, monkeypatch):
    """Of the reference no gradient was looked at."""
    compared, compare = [], flex.backward_differs
    monkeypatch.setattr(flex, "backward_differs", lambda *given: compared.append(given[0]) or compare(*given))
    policies = [Policy(llama().requires_grad_(trained)) for trained in (False, True, True)]
    for policy in policies:
        policy(batch(2), Needs())
    assert [policy.causal.model in compared for policy in policies] == [True, True, False]  # the third is known
