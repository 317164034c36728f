import dataclasses

import pytest
import torch

from prefopt import Batch
from prefopt.policy.rows.layout import packed, padded, tree_mask

CPU = torch.device("cpu")


def test_rows_by_hand():
    batch = Batch(
        ((1, 2, 3), (4,)),
        torch.tensor([[[5, 6, 7], [8, 0, 0]], [[0, 0, 0], [9, 10, 0]]]),
        torch.tensor([[[True, False, True], [True, False, False]], [[False] * 3, [True, True, False]]]),
    )
    rows = padded(batch, CPU)  # the last token of each is predicted, and need not be read
    assert rows.input_ids.tolist() == [[1, 2, 3, 5, 6], [1, 2, 3, 0, 0], [4, 9, 0, 0, 0]]
    assert rows.attention_mask.tolist() == [[1] * 5, [1] * 3 + [0] * 2, [1] * 2 + [0] * 3]
    # A token is predicted one position before its own; 6 came from a tool.
    assert rows.places.tolist() == [2, 4, 5 + 2, 10 + 0, 10 + 1]
    rows = padded(batch, CPU, None, "reading")
    assert rows.input_ids.tolist() == [[1, 2, 3, 5, 6, 7], [1, 2, 3, 8, 0, 0], [4, 9, 10, 0, 0, 0]]
    assert rows.places.tolist() == [3, 5, 6 + 3, 12 + 1, 12 + 2]
    assert padded(batch, CPU, None, "ending").places.tolist() == [5, 6 + 3, 12 + 2]


@pytest.mark.parametrize("layout", [packed, padded])
def test_the_order_is_the_masks(layout, make_batch):
    batch = make_batch(4, 3, holes=True, absent=[(0, 1), (2, 2)])
    rows = layout(batch, CPU, wanted="reading")
    assert rows.wanted(rows.input_ids).tolist() == batch.completion_ids[batch.mask].tolist()


def test_never_no_rows(make_batch):
    rows = padded(make_batch(1, 1, absent=[(0, 0)]), CPU)
    assert rows.input_ids.shape == (1, 1)
    assert len(rows.places) == 0


def pair(prompt=(1, 2, 3, 4, 5, 6), first=(7, 8), second=(9,)) -> Batch:
    width = max(len(first), len(second))
    ids = torch.tensor([[[*y, *[0] * (width - len(y))] for y in (first, second)]])
    return Batch((tuple(prompt),), ids, ids > 0)


def test_a_shared_row_by_hand():
    rows = padded(pair(), CPU, 16, "reading")
    assert rows.input_ids.tolist() == [[1, 2, 3, 4, 5, 6, 7, 8, 9]]
    assert rows.branches.tolist() == [[0, 0, 0, 0, 0, 0, 1, 1, 2]]
    assert rows.positions.tolist() == [[0, 1, 2, 3, 4, 5, 6, 7, 6]]
    assert rows.places.tolist() == [6, 7, 8]
    assert padded(pair(), CPU, 16, "ending").places.tolist() == [7, 8]
    rows = padded(pair(), CPU, 16)
    assert rows.input_ids.tolist() == [[1, 2, 3, 4, 5, 6, 7]]
    assert rows.branches.tolist() == [[0, 0, 0, 0, 0, 0, 1]]
    assert rows.places.tolist() == [5, 6, 5]  # the prompt's last token predicts both first ones


def test_a_packed_row_by_hand():
    short = pair(prompt=(11, 12), first=(13,), second=(14, 15))
    rows = packed(pooled(pair(), short), CPU)
    assert rows.input_ids.tolist() == [[1, 2, 3, 4, 5, 6, 7, 11, 12, 14]]
    assert rows.positions.tolist() == [[0, 1, 2, 3, 4, 5, 6, 0, 1, 2]]
    assert rows.places.tolist() == [5, 6, 5, 8, 8, 9]
    assert rows.segments.groups == [(6, [1]), (2, [1])]
    assert rows.longest == 7
    assert rows.tokens() == (10, 10)
    rows = packed(pooled(pair(), short), CPU, "ending")
    assert rows.input_ids.tolist() == [[1, 2, 3, 4, 5, 6, 7, 8, 9, 11, 12, 13, 14, 15]]
    assert rows.places.tolist() == [7, 8, 11, 13]
    assert rows.segments.groups == [(6, [2, 1]), (2, [1, 2])]


def test_what_all_completions_begin_with_is_read_once():
    batch = pair(prompt=(1, 2), first=(3, 4, 5), second=(3, 4, 6, 7))
    rows = packed(batch, CPU, "reading")
    assert rows.input_ids.tolist() == [[1, 2, 3, 4, 5, 6, 7]]
    assert rows.positions.tolist() == [[0, 1, 2, 3, 4, 4, 5]]
    assert rows.places.tolist() == [2, 3, 4, 2, 3, 5, 6]
    assert rows.segments.groups == [(4, [1, 2])]
    rows = packed(batch, CPU)
    assert rows.input_ids.tolist() == [[1, 2, 3, 4, 6]]
    assert rows.places.tolist() == [1, 2, 3, 1, 2, 3, 4]
    assert packed(batch, CPU, "ending").places.tolist() == [4, 6]
    assert padded(batch, CPU).input_ids.shape == (2, 5)  # plain rows have nothing in common


def test_a_completion_that_others_begin_with_has_no_segment():
    batch = pair(prompt=(1, 2), first=(3, 4), second=(3, 4, 5))
    rows = packed(batch, CPU, "ending")
    assert rows.input_ids.tolist() == [[1, 2, 3, 4, 5]]
    assert rows.places.tolist() == [3, 4]
    assert rows.segments.groups == [(4, [1])]
    assert packed(batch, CPU).places.tolist() == [1, 2, 1, 2, 3]
    same = packed(pair(prompt=(1,), first=(3, 4), second=(3, 4)), CPU)
    assert same.input_ids.tolist() == [[1, 3]]
    assert same.places.tolist() == [0, 1, 0, 1]


def test_completions_of_one_token_are_predicted_from_the_prompt_alone():
    rows = packed(pair(prompt=(1, 2), first=(3,), second=(4,)), CPU)
    assert rows.input_ids.tolist() == [[1, 2]]
    assert rows.places.tolist() == [1, 1]
    assert rows.segments.groups == [(2, [])]


@pytest.mark.parametrize("layout", [packed, padded])
def test_a_completion_does_not_end_with_padding(layout):
    """The reward is read before it: of a completion that is nothing else, at the end of the prompt."""
    batch = pair(prompt=(1, 2), first=(9, 3, 9, 9), second=(9,))
    rows, whole = layout(batch, CPU, wanted="ending", padding=9), layout(batch, CPU, wanted="ending")
    assert rows.wanted(rows.input_ids).tolist() == [3, 2]
    assert whole.wanted(whole.input_ids).tolist() == [9, 9]


def test_prompts_without_completions_are_not_packed(make_batch):
    batch = make_batch(2, 1, absent=[(0, 0)])
    assert [prompt for prompt, _ in packed(batch, CPU).segments.groups] == [len(batch.prompt_ids[1])]
    assert packed(make_batch(1, 1, absent=[(0, 0)]), CPU).input_ids.shape == (1, 1)


@pytest.mark.parametrize("window", [None, 3])
def test_a_tree_mask_by_hand(window):
    rows = padded(pair(), CPU, 16, "reading")
    seen = [
        [i for i, value in enumerate(row) if value == 0]
        for row in tree_mask(rows, torch.float32, window)[0, 0].tolist()
    ]
    alone = [[0], [0, 1], [0, 1, 2], [0, 1, 2, 3], [0, 1, 2, 3, 4], [0, 1, 2, 3, 4, 5]]
    if window is None:
        assert seen == [*alone, [*range(7)], [*range(8)], [*range(6), 8]]
    else:
        assert seen == [*(row[-3:] for row in alone), [4, 5, 6], [5, 6, 7], [4, 5, 8]]


def test_every_token_sees_something_even_padding(make_batch):
    rows = padded(pooled(pair(), pair(prompt=range(1, 15))), CPU, width=16)
    assert (rows.attention_mask == 0).any()
    assert ((tree_mask(rows, torch.float32) == 0).sum(-1) > 0).all()


def pooled(*batches: Batch) -> Batch:
    width = max(b.mask.shape[2] for b in batches)
    ids, masks = (
        torch.cat([torch.nn.functional.pad(getattr(b, name), (0, width - b.mask.shape[2])) for b in batches])
        for name in ("completion_ids", "mask")
    )
    return Batch(tuple(b.prompt_ids[0] for b in batches), ids, masks)


def test_a_prompt_is_laid_out_alike_whatever_its_companions():
    short, long = pair(prompt=(1,), first=range(1, 60), second=range(2, 61)), pair(prompt=range(1, 90))
    assert padded(short, CPU, width=16).branches is None  # two rows are less to compute than one that is twice as long
    assert padded(long, CPU, width=16).branches is not None
    rows = padded(pooled(short, long), CPU, 16, "reading")
    assert [int(row.max()) for row in rows.branches * rows.attention_mask] == [1, 1, 2]
    assert rows.places.tolist() == [*range(1, 60), *range(92 + 1, 92 + 60), *(184 + 89 + n for n in range(3))]


def test_many_long_completions_are_cut_into_several_rows():
    ids = torch.ones(1, 32, 40, dtype=torch.long)
    ids[..., 0] = torch.arange(1, 33)
    rows = padded(Batch((tuple(range(1, 201)),), ids, ids > 0), CPU, width=16)
    assert rows.input_ids.shape == (4, 200 + 8 * 39)
    assert len(rows.places) == 32 * 40


def test_the_order_is_the_masks_in_shared_rows_too(make_batch):
    batch = make_batch(4, 3, holes=True, absent=[(0, 1), (2, 2)])
    batch = dataclasses.replace(batch, prompt_ids=tuple(tuple(range(1, 20)) for _ in range(4)))
    rows = padded(batch, CPU, width=16)
    assert rows.branches is not None
    found = []
    for place in rows.places.tolist():
        row, at = divmod(place, rows.input_ids.shape[1])
        found.append((row, int(rows.positions[row, at])))
    expected = [(b, 18 + t) for b in range(4) for k in range(3) for t in range(6) if batch.mask[b, k, t]]
    assert found == expected
