import torch

from prefopt import Batch
from prefopt.policy.layout import lay

CPU = torch.device("cpu")


def test_rows_by_hand():
    batch = Batch(
        ((1, 2, 3), (4,)),
        torch.tensor([[[5, 6, 7], [8, 0, 0]], [[0, 0, 0], [9, 10, 0]]]),
        torch.tensor([[[True, False, True], [True, False, False]], [[False] * 3, [True, True, False]]]),
    )
    rows = lay(batch, CPU)
    assert rows.input_ids.tolist() == [[1, 2, 3, 5, 6, 7], [1, 2, 3, 8, 0, 0], [4, 9, 10, 0, 0, 0]]
    assert rows.attention_mask.tolist() == [[1] * 6, [1] * 4 + [0] * 2, [1] * 3 + [0] * 3]
    # A token is predicted one position before its own; 6 came from a tool.
    assert rows.predicts.tolist() == [2, 4, 6 + 2, 12 + 0, 12 + 1]
    assert rows.last.tolist() == [5, 3, 2]


def test_the_order_is_the_masks(make_batch):
    batch = make_batch(4, 3, holes=True, absent=[(0, 1), (2, 2)])
    rows = lay(batch, CPU)
    assert rows.predicting(rows.input_ids.roll(-1, 1)).tolist() == batch.completion_ids[batch.mask].tolist()


def test_never_no_rows(make_batch):
    rows = lay(make_batch(1, 1, absent=[(0, 0)]), CPU)
    assert rows.input_ids.shape == (1, 1)
    assert len(rows.predicts) == 0
