import dataclasses

import pytest
import torch

from prefopt import Needs, PrefoptError
from prefopt.sources.writers import mismatched, without_writers
from prefopt.types import ORIGINS

COMPARES = Needs(completions=2, scores=True, columns=("origin", "embeddings"))


def test_each_prompt_gets_the_next_others_completion(make_batch):
    batch = make_batch(4, 1, scores=torch.tensor([[0.5], [-0.5], [0.5], [0.5]]))
    batch = dataclasses.replace(batch, prompt_ids=((1,), (2,), (2,), (3,)))
    more = mismatched(batch)
    for row, donor in enumerate([1, 3, 3, 0]):  # rows 1 and 2 have one prompt
        assert torch.equal(more.completion_ids[row, 0], batch.completion_ids[row, 0])
        assert torch.equal(more.completion_ids[row, 1], batch.completion_ids[donor, 0])
        assert torch.equal(more.mask[row, 1], batch.mask[donor, 0])
    assert more.columns["origin"].tolist() == [[0, ORIGINS.index("mismatched")]] * 4
    assert more.columns["trained"].tolist() == [[True, False]] * 4
    assert more.scores[:, 0].tolist() == batch.scores[:, 0].tolist()


def test_absent_where_there_is_no_other_prompt(make_batch):
    batch = dataclasses.replace(make_batch(3, 1), prompt_ids=((1,),) * 3)
    assert mismatched(batch).present.tolist() == [[True, False]] * 3


def test_columns_of_completions_keep_their_shape(make_batch):
    columns = {"gold": torch.rand(3, 1), "sampler_logps": torch.rand(3, 1, 6), "embeddings": torch.rand(3, 5)}
    more = mismatched(make_batch(3, 1, columns=columns, preference=torch.rand(3, 1, 1))).columns
    assert [list(more[name].shape) for name in columns] == [[3, 2], [3, 2, 6], [3, 5]]


def test_what_the_data_bring():
    assert without_writers(COMPARES, ["mismatched"], "KTO") == Needs(
        completions=1, scores=True, columns=("embeddings",)
    )
    plain = Needs(completions=2)
    assert without_writers(plain, [], "DPO") == plain


@pytest.mark.parametrize(
    ("needs", "writers", "message"),
    [(COMPARES, [], r"KTO compares .* {writers: \[mismatched\]}"), (Needs(), ["mismatched"], "KTO does not compare")],
)
def test_refuses_writers_that_do_not_fit(needs, writers, message):
    with pytest.raises(PrefoptError, match=message):
        without_writers(needs, writers, "KTO")
