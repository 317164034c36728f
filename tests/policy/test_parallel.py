"""Rows dealt and gathered: each once, in the batch's order again."""

import contextlib

import pytest
import torch
from accelerate import Accelerator
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM
from updates import random_batch

from prefopt import recipe
from prefopt.policy import Policy, Reference, make_reference
from prefopt.policy.parallel import Deal, forward
from prefopt.types import Batch, Needs, Outputs


class Processes:
    """What a `Deal` knows of an accelerator, for any rank without a second process."""

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
def test_every_row_is_dealt_once_and_all_processes_take_as_many_passes(
    lengths: list[int], size: int, world: int, tokens: int | None
) -> None:
    deals = [Deal(lengths, size, Processes(rank, world), tokens) for rank in range(world)]  # type: ignore[arg-type]
    dealt = [row for d in deals for piece in d.pieces if not piece.filler for row in piece.rows.tolist()]
    assert sorted(dealt) == list(range(len(lengths)))
    assert len({len(d.pieces) for d in deals}) == 1
    assert all(len(piece.rows) <= size for d in deals for piece in d.pieces)
    places = 0
    for piece in (p for d in deals for p in d.pieces if not p.filler):
        padded = len(piece.rows) * max(lengths[row] for row in piece.rows.tolist())
        assert tokens is None or padded <= tokens or len(piece.rows) == 1
        places += padded
    assert all(abs(d.padding - (1 - sum(lengths) / places)) < 1e-12 for d in deals)


def test_a_token_budget_cuts_where_padding_would_exceed_it() -> None:
    dealt = Deal([10, 2, 9, 3, 50], 8, Accelerator(cpu=True), tokens=20)
    assert [piece.rows.tolist() for piece in dealt.pieces] == [[4], [0, 2], [1, 3]]
    assert dealt.padding == 1 - 74 / (6 + 20 + 50)


def test_gather_puts_rows_back_where_they_were() -> None:
    lengths = [5, 1, 4, 2, 3]
    dealt = Deal(lengths, 2, Accelerator(cpu=True))
    found = [torch.tensor(lengths)[piece.rows] for piece in dealt.pieces]
    assert [f.tolist() for f in found] == [[5, 4], [2, 3], [1]]
    assert dealt.gather(found).tolist() == lengths


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
