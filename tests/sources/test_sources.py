import math
from collections import Counter
from itertools import islice

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from prefopt.data import Example, Tokenised, parse, selecting
from prefopt.data.ordering import permutation
from prefopt.sources.recorded import Recorded
from prefopt.support.errors import PrefoptError
from prefopt.types import Needs

PAIRWISE = Needs(completions=2, ordered=True)
LISTWISE = Needs(ordered=True)
POINTWISE = Needs(completions=1, scores=True)
IMITATION = Needs(completions=1, ordered=True)


def rated(*scores, **columns):
    names = [f"y{i}" for i in range(len(scores))]
    return parse({"prompt": "p", "completions": names, "scores": scores, **columns}, "x.jsonl:1")


def tokenised(example, row=0):
    ids = tuple((int(str(name)[1:]) + 10,) for name in example.completions)
    return Tokenised((1,), ids, example.scores, example.preference, example, row)


def select(rows, needs, ties="drop"):
    counts = Counter()
    return list(selecting.select_completions(rows, needs, ties, counts)), dict(+counts)


def names(rows):
    return [row.completions for row in rows]


def test_pairs_from_longer_lists_are_best_and_worst():
    rows, counts = select([rated(3, 9, 1, 5)], PAIRWISE)
    assert names(rows) == [("y1", "y2")]
    assert rows[0].scores == (9, 1)
    assert counts == {}
    # Nobody asked for an order, so the data's stays.
    assert names(select([rated(1, 5, 9)], Needs(completions=2))[0]) == [("y0", "y2")]
    assert names(select([rated(1, 5, 9, 2, 7)], Needs(completions=3, ordered=True))[0]) == [("y2", "y1", "y0")]
    assert names(select([rated(5, 5)], Needs(completions=2))[0]) == [("y0", "y1")]


def test_all_in_order():
    assert names(select([rated(3, 9, 1, 5)], LISTWISE)[0]) == [("y1", "y3", "y0", "y2")]
    row = rated(3, 9)
    assert select([row], Needs())[0] == [row]


def test_tokens_scores_preference_and_columns_move_together():
    preference = [[0.5, 0.25, 0.375], [0.75, 0.5, 1], [0.625, 0, 0.5]]
    row = rated(2, 3, 1, preference=preference, cost=[7, 8, 9], id=4)
    (moved,), _ = select([tokenised(row, 5)], LISTWISE)
    assert moved.completion_ids == ((11,), (10,), (12,))
    assert moved.scores == moved.example.scores == (3, 2, 1)
    assert moved.preference == ((0.5, 0.75, 1), (0.25, 0.5, 0.375), (0, 0.625, 0.5))
    assert moved.columns == {"cost": [8, 7, 9], "id": 4}
    assert moved.example.completions == ("y1", "y0", "y2")
    assert moved.row == 5


def test_order_by_mean_preference():
    row = parse({"prompt": "p", "completions": ["y0", "y1", "y2"], "votes": [[1, 2, 3], [1, 3, 2], [1, 2, 3]]})
    assert names(select([row], LISTWISE)[0]) == [("y2", "y1", "y0")]
    assert names(select([row], PAIRWISE)[0]) == [("y2", "y0")]


def test_ties():
    rows = [rated(5, 5), rated(3, 5, 5), rated(1, 2)]
    dropped, counts = select(rows, PAIRWISE)
    assert names(dropped) == [("y1", "y0"), ("y1", "y0")]
    assert counts == {"completions dropped: tied with another one": 2, "prompts dropped: too few completions": 1}
    kept, counts = select(rows, PAIRWISE, "keep")
    assert names(kept) == [("y0", "y1"), ("y1", "y0"), ("y1", "y0")]
    assert counts == {"prompts kept: with tied completions": 2}
    assert names(select([rated(5, 5, 1)], IMITATION)[0]) == [("y0",)]
    tie = parse({"prompt": "p", "completions": ["y0", "y1", "y2"], "votes": [[0, 1, 1], [0, 2, 2], [0, 3, 3]]})
    assert names(select([tie], LISTWISE)[0]) == [("y1", "y0")]
    with pytest.raises(PrefoptError, match="'drop' or 'keep'"):
        select(rows, PAIRWISE, "maybe")


def test_single_completions():
    rows, _ = select([rated(1, 2, 6), rated(4)], POINTWISE)
    assert [(row.completions, row.scores) for row in rows] == [
        (("y0",), (-2,)),
        (("y1",), (-1,)),
        (("y2",), (3,)),
        (("y0",), (4,)),  # alone, so it has only its own score
    ]
    labelled = parse({"prompt": "p", "completion": "c", "label": False})
    assert select([labelled], POINTWISE)[0] == [labelled]
    pair = parse({"prompt": "p", "chosen": "c", "rejected": "r"})
    assert [row.scores for row in select([pair], POINTWISE)[0]] == [(0.5,), (-0.5,)]
    votes = parse({"prompt": "p", "completions": ["y0", "y1"], "votes": [[1, 2], [1, 1]]})
    assert [row.scores for row in select([votes], POINTWISE)[0]] == [(-0.25,), (0.25,)]


def test_single_completions_at_the_mean_say_nothing():
    row = rated(0.1, 0.2, 0.3)
    rows, counts = select([row], POINTWISE)
    assert names(rows) == [("y0",), ("y2",)]
    assert counts == {"completions dropped: neither better nor worse than their prompt's mean": 1}
    assert [r.scores[0] for r in select([row], POINTWISE, "keep")[0]] == pytest.approx([-0.1, 0, 0.1])


def test_the_best_to_imitate():
    assert names(select([rated(1, 6, 2)], IMITATION)[0]) == [("y1",)]
    demonstration = parse({"prompt": "p", "completion": "c"})
    assert select([demonstration], Needs(completions=1))[0] == [demonstration]
    labels = [parse({"prompt": "p", "completion": "c", "label": label}) for label in (True, False)]
    rows, counts = select(labels, IMITATION)
    assert rows == labels[:1]
    assert counts == {"prompts dropped: their only completion is labelled false": 1}


def test_absent_completions():
    rows, counts = select([rated(None, 1, 2), rated(math.nan, 1)], PAIRWISE)
    assert names(rows) == [("y2", "y1")]
    assert counts == {"prompts dropped: too few completions": 1}


@pytest.mark.parametrize(
    ("row", "needs", "message"),
    [
        (
            {"prompt": "p"},
            PAIRWISE,
            r"no row is left \(1 prompts dropped: too few.*; the first was .*data have 0 completions",
        ),
        ({"prompt": "p", "completion": "c", "label": True}, PAIRWISE, r"too few.*have it \(docs/data.md\): paired"),
        ({"prompt": "p", "completions": ["a", "b"]}, PAIRWISE, "2 completions and nothing that orders them"),
        (
            {"prompt": "p", "completions": ["a", "b", "c"]},
            Needs(completions=2),
            "3 completions and nothing that orders",
        ),
        (
            {"prompt": "p", "completion": "c"},
            POINTWISE,
            r"x.jsonl:1 has no scores.*unpaired \(prompt, completion, label\)",
        ),
        ({"prompt": "p", "chosen": "c", "rejected": "r", "votes": [1, 2]}, Needs(rollouts=True), "use rollouts"),
        (
            {"prompt": "p", "chosen": "c", "rejected": "r"},
            Needs(preference=True),
            r"no preference.*have it.*: compared",
        ),
        ({"prompt": "p", "completions": ["a", "b"], "preference": 0.7}, Needs(scores=True), "has no scores"),
        (
            {"prompt": "p", "chosen": "c", "rejected": "r", "id": 1},
            Needs(columns=("row", "cost")),
            r"no column 'cost'.*\['id'\]",
        ),
    ],
)
def test_refusals_say_what_would_do(row, needs, message):
    with pytest.raises(PrefoptError, match=message):
        select([parse(row, "x.jsonl:1")], needs)


scores = st.lists(st.integers(0, 4), min_size=1, max_size=6)


@given(st.lists(scores, min_size=1, max_size=5), st.sampled_from(["drop", "keep"]))
@settings(deadline=None)
def test_order_properties(lists, ties):
    examples = [rated(*row, cost=list(row)) for row in lists]
    try:
        rows, counts = select(examples, LISTWISE, ties)
    except PrefoptError:
        assert all(len(set(row) if ties == "drop" else row) < 2 for row in lists)
        return
    for row in rows:
        assert list(row.scores) == sorted(row.scores, reverse=True) == row.columns["cost"]
        if ties == "drop":
            assert len(set(row.scores)) == len(row.scores)
    assert sum(row.size for row in rows) <= sum(map(len, lists))
    assert len(rows) + counts.get("prompts dropped: too few completions", 0) == len(lists)


def rows_of(count):
    return [Tokenised((1,), ((i,),), None, None, Example("p", ("c",)), i) for i in range(count)]


def drawn(source, batches):
    return [batch.columns["row"].tolist() for batch in islice(source, batches)]


@given(st.integers(1, 9), st.integers(1, 9), st.integers(-3, 3))
@settings(max_examples=40, deadline=None)
def test_every_epoch_is_a_permutation(count, batch_size, seed):
    if batch_size > count:
        with pytest.raises(PrefoptError, match=f"{batch_size} rows from {count} rows"):
            Recorded(rows_of(count), batch_size, seed)
        return
    batches = drawn(Recorded(rows_of(count), batch_size, seed), 2 * count)
    assert {len(batch) for batch in batches} == {batch_size}
    order = [row for batch in batches for row in batch]
    for epoch in range(2 * batch_size):
        assert sorted(order[epoch * count : (epoch + 1) * count]) == list(range(count))
        assert order[epoch * count : (epoch + 1) * count] == permutation(count, seed, epoch).tolist()


def test_order_depends_on_seed_and_epoch():
    assert len({tuple(permutation(50, seed, epoch)) for seed in (0, 1) for epoch in (0, 1)}) == 4
    # Independent of the other rows: dropping the last keeps the order of the rest.
    assert [row for row in permutation(50, 3, 1) if row < 49] == permutation(49, 3, 1).tolist()


def test_order_is_spread_evenly():
    # The first row of 2000 epochs of 10 rows; χ² with 9 degrees of freedom is below 27.9 with probability .999.
    firsts = torch.bincount(torch.tensor([permutation(10, 0, epoch)[0] for epoch in range(2000)]), minlength=10)
    assert ((firsts - 200) ** 2 / 200).sum() < 27.9


def test_the_place_is_saved_and_restored():
    uninterrupted = drawn(Recorded(rows_of(7), 3, seed=1), 9)
    source = Recorded(rows_of(7), 3, seed=1)
    assert drawn(source, 4) == uninterrupted[:4]
    state = source.state_dict()
    assert drawn(source, 1) == uninterrupted[4:5]  # another iterator goes on from the place
    resumed = Recorded(rows_of(7), 3, seed=1)
    resumed.load_state_dict(state)
    assert drawn(resumed, 5) == uninterrupted[4:]
    assert len(source) == 7


def test_a_place_in_other_data_is_refused():
    state = Recorded(rows_of(7), 3, seed=1).state_dict()
    with pytest.raises(PrefoptError, match="checkpoint has rows 7, the recipe 8"):
        Recorded(rows_of(8), 3, seed=1).load_state_dict(state)
    with pytest.raises(PrefoptError, match="checkpoint has seed 1, the recipe 2"):
        Recorded(rows_of(7), 3, seed=2).load_state_dict(state)


def test_columns_reach_the_batch():
    rows = [tokenised(rated(1, 2, cost=[3, 4]))]
    batch = next(iter(Recorded(rows, 1, 0, ("cost",))))
    assert batch.columns["cost"].tolist() == [[3, 4]]
