import dataclasses

import pytest
import torch

from prefopt import Batch, Needs, Outputs, Targets


@pytest.fixture
def batch():
    """Three prompts; the third lacks its second completion, and the first holds text from a tool."""
    mask = torch.tensor([[[1, 0, 1], [1, 1, 0]], [[1, 0, 0], [1, 1, 1]], [[1, 1, 0], [0, 0, 0]]], dtype=torch.bool)
    return Batch(
        ((1,), (2, 2), (3, 3, 3)),
        torch.arange(18).view(3, 2, 3),
        mask,
        scores=torch.arange(6.0).view(3, 2),
        preference=torch.arange(12.0).view(3, 2, 2),
        columns={
            "embeddings": torch.arange(6.0).view(3, 2),
            "gold": torch.arange(6.0).view(3, 2),
            "sampler_logps": torch.arange(18.0).view(3, 2, 3),
        },
    )


def test_present(batch):
    assert batch.present.tolist() == [[True, True], [True, True], [True, False]]


@pytest.mark.parametrize("index", [torch.tensor([2, 0]), slice(1, 3), torch.tensor([], dtype=torch.long)])
def test_rows_move_every_field(batch, index):
    some = batch.rows(index)
    numbers = torch.arange(3)[index].tolist()
    assert some.prompt_ids == tuple(batch.prompt_ids[i] for i in numbers)
    for name in ("completion_ids", "mask", "scores", "preference"):
        assert torch.equal(getattr(some, name), getattr(batch, name)[numbers])
    for name, column in batch.columns.items():
        assert torch.equal(some.columns[name], column[numbers])


def test_first_cuts_what_belongs_to_completions(batch):
    best = batch.first(1)
    assert best.completion_ids.shape == (3, 1, 3)
    assert best.scores.shape == (3, 1)
    assert best.preference.shape == (3, 1, 1)
    assert {name: list(column.shape) for name, column in best.columns.items()} == {
        "embeddings": [3, 2],  # of the prompt
        "gold": [3, 1],
        "sampler_logps": [3, 1, 3],
    }
    assert batch.first(2) is batch


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("completion_ids", torch.zeros(3, 3, dtype=torch.long), "completion_ids"),
        ("prompt_ids", ((1,),), "1 prompts for 3 rows"),
        ("mask", torch.ones(3, 2, 3), "mask must be bool"),
        ("mask", torch.ones(3, 2, 2, dtype=torch.bool), "mask must be bool"),
        ("scores", torch.zeros(3), "scores"),
        ("preference", torch.zeros(3, 2), "preference"),
        ("columns", {"cost": torch.zeros(3)}, "'cost'"),
        ("columns", {"mine": torch.zeros(2)}, "'mine'"),
    ],
)
def test_fields_that_contradict_each_other_are_refused(batch, field, value, words):
    with pytest.raises(ValueError, match=words):
        dataclasses.replace(batch, **{field: value})


def test_everything_is_frozen(batch):
    for record in (batch, Outputs(batch.mask), Needs(), Targets()):
        with pytest.raises(dataclasses.FrozenInstanceError):
            record.mask = None


def test_counts_by_hand(batch):
    assert {unit: Needs(per=unit).count(batch) for unit in ("prompt", "completion", "token")} == {
        "prompt": 3,
        "completion": 5,
        "token": 10,
    }


def test_only_the_best_one_is_a_cut(batch):
    assert Needs(completions=1, ordered=True).view(batch).completion_ids.shape[1] == 1
    assert Needs(completions=1).view(batch) is batch
    assert Needs(completions=2, ordered=True).view(batch) is batch


def test_sum_and_mean_leave_out_what_is_not_the_policys(batch):
    logps = -torch.arange(1.0, 19).view(3, 2, 3)
    outputs = Outputs(batch.mask, logps)
    assert outputs.sum().tolist() == [[-4, -9], [-7, -33], [-27, 0]]
    assert outputs.mean().tolist() == [[-2, -4.5], [-7, -11], [-13.5, 0]]
    nothing = Outputs(batch.mask, torch.full_like(logps, torch.nan).masked_fill(batch.mask, 0.0))
    assert nothing.sum().eq(0).all()


def test_outputs_move_together(batch):
    outputs = Outputs(
        batch.mask,
        torch.randn(3, 2, 3, requires_grad=True),
        rewards=torch.arange(6.0).view(3, 2),
        statistics={"entropy": torch.arange(18.0).view(3, 2, 3)},
    )
    some = outputs.rows(torch.tensor([2, 0]))
    assert torch.equal(some.rewards, outputs.rewards[[2, 0]])
    assert torch.equal(some.statistics["entropy"], outputs.statistics["entropy"][[2, 0]])
    assert outputs.first(1).statistics["entropy"].shape == (3, 1, 3)
    assert some.logps.requires_grad
    assert not outputs.detach().logps.requires_grad
    with pytest.raises(ValueError, match="scorer"):
        Outputs(batch.mask).sum()


def test_targets_select_rows_and_keep_numbers():
    targets = Targets({"a": torch.arange(3)}, {"mean": 1.0}).select(slice(1, 2))
    assert targets.rows["a"].tolist() == [1]
    assert targets.metrics == {"mean": 1.0}
