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
        ("columns", {"sampler_logps": torch.zeros(3, 2)}, "'token'.*must start with .3, 2, 3."),
        ("axes", {"embeddings": "token"}, "'embeddings', whose axis is 'token'"),
        ("axes", {"mine": "row"}, "one of prompt, completion, token, got 'row'"),
        ("rewards", torch.zeros(3, 2), "rewards must be .3, 2, 3."),
        ("named_scores", {"safe": torch.zeros(3)}, "named_scores.'safe'. must be .3, 2."),
        ("version", torch.zeros(3, 2, 3), "version must be .3, 2."),
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


def test_columns_move_by_their_axes(batch):
    """A user's columns as well as ours: by rows, cut, extended and padded."""
    mine = {
        "each": torch.arange(12.0).view(3, 2, 2),  # two numbers for each completion
        "token": torch.arange(18.0).view(3, 2, 3),
        "prompt": torch.arange(6.0).view(3, 2),
    }
    whole = dataclasses.replace(
        batch,
        columns={**batch.columns, **mine},
        axes={"each": "completion", "token": "token"},
        rewards=torch.arange(18.0).view(3, 2, 3),
        named_scores={"safe": torch.arange(6.0).view(3, 2)},
        version=torch.arange(6).view(3, 2),
    )
    best = whole.first(1)
    assert torch.equal(best.columns["each"], mine["each"][:, :1])
    assert torch.equal(best.columns["token"], mine["token"][:, :1])
    assert torch.equal(best.columns["prompt"], mine["prompt"])
    assert torch.equal(best.rewards, whole.rewards[:, :1])
    assert torch.equal(best.named_scores["safe"], whole.named_scores["safe"][:, :1])
    assert best.version.tolist() == [[0], [2], [4]]
    more = whole.extended(2)
    assert more.present.tolist() == [
        [True, True, False, False],
        [True, True, False, False],
        [True, False, False, False],
    ]
    assert more.columns["each"][0].tolist() == [[0, 1], [2, 3], [0, 0], [0, 0]]
    assert more.preference[0, 2:].eq(0.5).all() and torch.equal(more.preference[:, :2, :2], whole.preference)
    assert torch.equal(more.columns["prompt"], mine["prompt"])
    assert more.first(2).columns.keys() == whole.columns.keys()
    assert torch.equal(more.first(2).version, whole.version)
    wide = whole.padded(2)
    for name, value in (("token", wide.columns["token"]), ("rewards", wide.rewards)):
        assert value.shape == (3, 2, 5), name
        assert value[..., 3:].eq(0).all(), name
    assert wide.columns["each"].shape == (3, 2, 2)
    assert not wide.mask[..., 3:].any()
    order = torch.tensor([2, 0])
    some = whole.rows(order).to("cpu")
    assert torch.equal(some.rewards, whole.rewards[order])
    assert torch.equal(some.named_scores["safe"], whole.named_scores["safe"][order])
    assert some.version.tolist() == [[4, 5], [0, 1]]


def test_fields_of_outputs_are_listed_in_one_place(batch):
    logps, entropy = torch.randn(3, 2, 3), torch.randn(3, 2, 3)
    outputs = Outputs(batch.mask, logps, rewards=torch.zeros(3, 2), statistics={"entropy": entropy})
    assert set(outputs.fields()) == {"logps", "rewards", "entropy"}
    assert outputs.fields()["entropy"] is entropy
    other = outputs.with_fields({"logps": 2 * logps, "kl_policy_ref": entropy})
    assert torch.equal(other.logps, 2 * logps)
    assert other.rewards is outputs.rewards
    assert set(other.statistics) == {"entropy", "kl_policy_ref"}
    assert set(Outputs(batch.mask).with_fields(outputs.fields()).fields()) == set(outputs.fields())
