"""Rows sharded and gathered: each once, in the batch's order again."""

import contextlib
import math

import pytest
import torch
from accelerate import Accelerator
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM
from updates import random_batch

from prefopt import recipe
from prefopt.policy import Policy, Reference, make_reference
from prefopt.policy.parallel import Shards, draw, forward
from prefopt.support.errors import PrefoptError
from prefopt.types import Batch, Needs, Outputs, Sampled


class Processes:
    """What a `Shards` knows of an accelerator, for any rank without a second process."""

    def __init__(self, rank: int, world: int):
        self.process_index, self.num_processes = rank, world
        self.autocast = contextlib.nullcontext


@settings(deadline=None, max_examples=50)
@given(
    st.lists(st.integers(1, 99), min_size=1, max_size=23),
    st.integers(1, 6),
    st.integers(1, 4),
    st.none() | st.integers(1, 300),
)
def test_every_row_is_in_one_shard_and_all_processes_take_as_many_passes(
    lengths: list[int], size: int, world: int, tokens: int | None
) -> None:
    every = [Shards(lengths, size, Processes(rank, world), tokens) for rank in range(world)]  # type: ignore[arg-type]
    rows = [
        row for shards in every for micro in shards.micro_batches if not micro.filler for row in micro.rows.tolist()
    ]
    assert sorted(rows) == list(range(len(lengths)))
    assert len({len(shards.micro_batches) for shards in every}) == 1
    assert all(len(micro.rows) <= size for shards in every for micro in shards.micro_batches)
    places = 0
    for micro in (p for shards in every for p in shards.micro_batches if not p.filler):
        padded = len(micro.rows) * max(lengths[row] for row in micro.rows.tolist())
        assert tokens is None or padded <= tokens or len(micro.rows) == 1
        places += padded
    assert all(abs(shards.padding - (1 - sum(lengths) / places)) < 1e-12 for shards in every)


def test_a_token_budget_cuts_where_padding_would_exceed_it() -> None:
    shards = Shards([10, 2, 9, 3, 50], 8, Accelerator(cpu=True), tokens=20)
    assert [micro.rows.tolist() for micro in shards.micro_batches] == [[4], [0, 2], [1, 3]]
    assert shards.padding == 1 - 74 / (6 + 20 + 50)


def test_gather_puts_rows_back_where_they_were() -> None:
    lengths = [5, 1, 4, 2, 3]
    shards = Shards(lengths, 2, Accelerator(cpu=True))
    values = [torch.tensor(lengths)[micro.rows] for micro in shards.micro_batches]
    assert [f.tolist() for f in values] == [[5, 4], [2, 3], [1]]
    assert shards.gather(values).tolist() == lengths


@pytest.mark.parametrize("size", [1, 2, 5, 9])
def test_forward_keeps_the_order_of_the_batch(size: int) -> None:
    batch = random_batch(5, seed=0)

    def model(rows: Batch, needs: Needs) -> Outputs:
        return Outputs(rows.mask, logps=rows.completion_ids.double(), statistics={"entropy": rows.mask.double()})

    outputs = forward(model, batch, Needs(), size, Accelerator(cpu=True))
    assert outputs.logps is not None
    assert torch.equal(outputs.logps, batch.completion_ids.double())
    assert torch.equal(outputs.statistics["entropy"], batch.mask.double())
    assert outputs.values is None


def test_a_reference_does_the_policys_arithmetic_in_bf16(lm_folder, tokenizer, make_batch):
    """accelerate gives autocast to what it prepares alone; else a policy that is its reference would be at a distance from it."""
    processes = Processes(0, 1)
    processes.autocast = lambda: torch.autocast("cpu", torch.bfloat16)
    policy = Policy(AutoModelForCausalLM.from_pretrained(lm_folder).eval(), tokenizer)
    reference, batch = make_reference(policy, recipe.Reference(), recipe.Policy(model=str(lm_folder))), make_batch()
    with torch.no_grad(), processes.autocast():
        mine = policy(batch, Needs()).logps
    exact = Reference(policy)(batch, Needs()).logps
    theirs = forward(reference, batch, Needs(), len(batch), processes).logps
    assert torch.equal(mine, theirs)
    assert not torch.equal(exact, theirs)


def with_logps(logps):
    return Sampled(torch.ones(2, 2, 3), torch.ones(2, 2, 3) > 0, logps)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ([[1, 2]], r"the sampler Mine returned a list, not prefopt.Sampled"),
        (Sampled(torch.ones(2, 1, 3), torch.ones(2, 1, 3, dtype=torch.bool)), r"completion_ids of shape \[2, 1, 3\]"),
        (Sampled(torch.ones(2, 2, 3), torch.ones(2, 2, 3)), "a mask that is not bool"),
        (Sampled(torch.ones(2, 2, 3), torch.ones(2, 2, 3) > 0, torch.ones(2, 2)), r"logps of shape \[2, 2\]"),
        (Sampled(torch.ones(2, 2, 4), torch.ones(2, 2, 4) > 0), "drew 4 tokens, and sampling.max_tokens is 3"),
        (with_logps(torch.full((2, 2, 2), -1.0)), "logps that are not of the shape"),
        (with_logps(torch.full((2, 2, 3), 0.5)), "a log-prob of 0.5, and every one is finite and at most 0"),
        (with_logps(torch.full((2, 2, 3), math.nan)), "a log-prob of nan"),
        (with_logps(torch.full((2, 2, 3), -math.inf)), "a log-prob of -inf"),
    ],
)
def test_a_sampler_that_returns_something_else_is_refused(answer, message) -> None:
    class Mine:
        def __call__(self, *arguments):
            return answer

    with pytest.raises(PrefoptError, match=message):
        draw(Mine(), None, [(1,), (2,)], 2, recipe.Sampling(max_tokens=3), torch.zeros(2).long(), Processes(0, 1))()
