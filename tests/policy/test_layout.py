import torch

from prefopt import Batch
from prefopt.policy.layout import plain_rows

CPU = torch.device("cpu")


def test_rows_by_hand():
    batch = Batch(
        ((1, 2, 3), (4,)),
        torch.tensor([[[5, 6, 7], [8, 0, 0]], [[0, 0, 0], [9, 10, 0]]]),
        torch.tensor([[[True, False, True], [True, False, False]], [[False] * 3, [True, True, False]]]),
    )
    rows = plain_rows(batch, CPU)
    assert rows.input_ids.tolist() == [[1, 2, 3, 5, 6, 7], [1, 2, 3, 8, 0, 0], [4, 9, 10, 0, 0, 0]]
    assert rows.attention_mask.tolist() == [[1] * 6, [1] * 4 + [0] * 2, [1] * 3 + [0] * 3]
    # A token is predicted one position before its own; 6 came from a tool.
    assert [row.nonzero().flatten().tolist() for row in rows.predicts] == [[2, 4], [2], [0, 1]]
    assert rows.last.tolist() == [5, 3, 2]


def test_the_order_is_the_masks(make_batch):
    batch = make_batch(4, 3, holes=True, absent=[(0, 1), (2, 2)])
    rows = plain_rows(batch, CPU)
    assert rows.input_ids.roll(-1, 1)[rows.predicts].tolist() == batch.completion_ids[batch.mask].tolist()


def test_never_no_rows(make_batch):
    rows = plain_rows(make_batch(1, 1, absent=[(0, 0)]), CPU)
    assert rows.input_ids.shape == (1, 1)
    assert not rows.predicts.any()
