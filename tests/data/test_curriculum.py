import math

import pytest

from prefopt.data.ordering import ORDERS, EasyFirst, SelfPaced, Shuffled
from prefopt.support.errors import PrefoptError

LENGTHS = [5, 3, 9, 1, 7, 3, 2, 8]


def make(name, seed=0, batches=8):
    return ORDERS[name](LENGTHS, seed, batches)


@pytest.mark.parametrize("name", ["shuffled", "length", "reward"])
def test_an_epoch_has_every_prompt_once(name):
    order = make(name)
    taken = [row for _ in range(8) for row in order.take(3)]
    assert [sorted(taken[i : i + 8]) for i in (0, 8, 16)] == [list(range(8))] * 3


def test_shortest_first():
    taken = make("length").take(8)
    assert [LENGTHS[row] for row in taken] == sorted(LENGTHS)


def test_equally_short_ones_are_shuffled():
    firsts = {tuple(row for row in make("length", seed).take(4) if LENGTHS[row] == 3) for seed in range(20)}
    assert firsts == {(1, 5), (5, 1)}


def test_highest_present_reward_first_and_the_unknown_before_them():
    order = make("reward")
    first = order.take(8)
    order.observe(first, [float(row) for row in first])
    order.observe([2], [math.nan])  # no verdict: nothing is learnt
    assert order.take(8) == [7, 6, 5, 4, 3, 2, 1, 0]
    order.observe([0], [10.0])
    fresh = EasyFirst(9, 0)
    fresh.rewards = {row: float(row) for row in range(8)}
    assert order.take(8)[0] == 0
    assert fresh.take(9)[0] == 8


def test_self_paced_admits_more_and_more():
    order = SelfPaced(8, seed=0, batches=4)
    order.observe(range(8), [float(-row) for row in range(8)])  # 0 is the easiest
    seen = [sorted(order.take(2)) for _ in range(12)]
    assert seen[0] == [0, 1]  # a quarter
    assert max(seen[1]) <= 3  # 7/16 of 8, rounded up, is 4
    assert {row for batch in seen[4:] for row in batch} == set(range(8))
    assert all(len(set(batch)) == 2 for batch in seen)


@pytest.mark.parametrize("name", ORDERS)
def test_a_place_can_be_saved(name):
    order, other = make(name), make(name)
    for turn in range(3):
        rows = order.take(3)
        order.observe(rows, [row / 7 + turn for row in rows])
    other.load_state_dict(order.state_dict())
    for _ in range(5):
        rows = order.take(3)
        assert other.take(3) == rows
        for one in (order, other):
            one.observe(rows, [-row / 7 for row in rows])


@pytest.mark.parametrize("name", ORDERS)
def test_a_saved_place_is_not_the_live_one(name):
    order = make(name)
    order.observe(order.take(3), [0.1, 0.2, 0.3])
    state = order.state_dict()
    before = repr(state)
    rows = order.take(3)
    order.observe(rows, [9.0, 9.0, 9.0])
    assert repr(state) == before


@pytest.mark.parametrize("name", ORDERS)
def test_refuses_a_place_in_other_data(name):
    with pytest.raises(PrefoptError, match="cannot resume: the checkpoint has seed 1, the recipe 0"):
        make(name).load_state_dict(make(name, seed=1).state_dict())


def test_the_order_does_not_depend_on_the_batch_size():
    small, large = Shuffled(8, 0), Shuffled(8, 0)
    assert [row for _ in range(8) for row in small.take(2)] == [row for _ in range(2) for row in large.take(8)]
