import pytest
import torch

from prefopt.data import Example, Tokenised, collate
from prefopt.data.selecting import select_completions
from prefopt.support.errors import PrefoptError
from prefopt.types import Needs


def tokenised(*completions, row=0, scores=None, preference=None, masks=None, **columns):
    example = Example("p", ("c",) * len(completions), scores, preference, where=f"x.jsonl:{row + 1}", columns=columns)
    return Tokenised((1, 2), completions, scores, preference, example, row, masks)


def test_shapes_and_padding():
    batch = collate([tokenised((5, 6, 7), (8,), row=4, scores=(2.0, 1.0)), tokenised((9, 3), row=2, scores=(3.0,))])
    assert batch.prompt_ids == ((1, 2), (1, 2))
    assert batch.completion_ids.tolist() == [[[5, 6, 7], [8, 0, 0]], [[9, 3, 0], [0, 0, 0]]]
    assert batch.completion_ids.dtype == torch.long
    assert batch.mask.tolist() == [[[True] * 3, [True, False, False]], [[True, True, False], [False] * 3]]
    assert batch.present.tolist() == [[True, True], [True, False]]
    assert batch.scores.tolist() == [[2, 1], [3, 0]]
    assert batch.preference is None
    assert batch.columns["row"].tolist() == [4, 2]


def test_mask_of_several_turns():
    batch = collate([tokenised((5, 6, 7), masks=((True, False, True),)), tokenised((5, 6))])
    assert batch.mask.tolist() == [[[True, False, True]], [[True, True, False]]]


def test_preference_of_the_absent_is_a_half():
    batch = collate(
        [tokenised((5,), (6,), preference=((0.5, 0.75), (0.25, 0.5))), tokenised((5,), preference=((0.5,),))]
    )
    assert batch.preference.tolist() == [[[0.5, 0.75], [0.25, 0.5]], [[0.5, 0.5], [0.5, 0.5]]]


def test_scores_are_there_only_when_all_rows_have_them():
    assert collate([tokenised((5,), scores=(1.0,)), tokenised((5,))]).scores is None


def test_prompts_alone():
    batch = collate([tokenised(row=1), tokenised()])
    assert batch.mask.shape == (2, 0, 0)
    assert batch.columns["row"].tolist() == [1, 0]


def test_columns():
    rows = [
        tokenised(
            (5, 6),
            (7,),
            margin=1,
            embeddings=[0.5, 1],
            cost=[3, 4],
            trained=[True, False],
            sampler_logps=[[-1, -2], [-3]],
        ),
        tokenised((8,), margin=0.5, embeddings=torch.ones(2), cost=[0.5], trained=[True], sampler_logps=[[-4.0]]),
    ]
    batch = collate(rows, ("row", "margin", "embeddings", "cost", "trained", "sampler_logps"))
    assert batch.columns["margin"].tolist() == [1, 0.5]
    assert batch.columns["embeddings"].tolist() == [[0.5, 1], [1, 1]]
    assert batch.columns["embeddings"].dtype == torch.float32
    assert batch.columns["cost"].tolist() == [[3, 4], [0.5, 0]]
    assert batch.columns["trained"].tolist() == [[True, False], [True, False]]
    assert batch.columns["sampler_logps"].tolist() == [[[-1, -2], [-3, 0]], [[-4, 0], [0, 0]]]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("missing", r"x.jsonl:1: no column 'missing'.*\['name', 'ragged', 'sampler_logps', 'uneven'\]"),
        ("name", "x.jsonl:1: column 'name' is 'anna', which is no tensor"),
        ("ragged", "x.jsonl:1: column 'ragged' is .*which is no tensor"),
        ("uneven", r"shape \[1\] in x.jsonl:1 but \[2\] in x.jsonl:2"),
        ("sampler_logps", r"x.jsonl:1: column 'sampler_logps' has shape \[3\] for a completion of 2 tokens"),
    ],
)
def test_bad_columns(name, message):
    rows = [
        tokenised((5, 6), row=r, name="anna", ragged=[[1], [2, 3]], uneven=[1] * (r + 1), sampler_logps=[[1, 2, 3]])
        for r in range(2)
    ]
    with pytest.raises(PrefoptError, match=message):
        collate(rows, (name,))


def test_a_users_column_has_the_axis_that_its_reader_states():
    """Three columns of two entries for two completions: only the stated axes tell them apart."""
    row = tokenised((5, 6), (7,), mine=[1.0, 2.0], each=[[1, 2], [3, 4]], token=[[1, 2], [3]], scores=(0.0, 1.0))
    needs = Needs(columns=("mine", "each", "token"), ordered=True, axes={"each": "completion", "token": "token"})
    (better_first,) = select_completions([row], needs)
    columns = collate([better_first], needs.columns).columns
    assert columns["mine"].tolist() == [[1, 2]]
    assert columns["each"].tolist() == [[[3, 4], [1, 2]]]
    assert columns["token"].tolist() == [[[3, 0], [1, 2]]]
    stated = row.with_axes({"token": "token"})
    assert stated.with_axes({"each": "completion"}).axes == needs.axes, "what was stated before is kept"
    with pytest.raises(PrefoptError, match=r"x.jsonl:1: 'mine' has 2 values for 1 completions"):
        list(select_completions([tokenised((5,), mine=[1, 2])], Needs(columns=("mine",), axes={"mine": "completion"})))
