"""Optimal values by dynamic programming, of a world that is small enough for the head and of Gymnasium's lake."""

import pytest

from prefopt.testbeds.games import optimal_value

CHAIN = {
    0: {0: [(1.0, 0, 0.1, False)], 1: [(0.5, 1, 0.0, False), (0.5, 0, 0.0, False)]},
    1: {0: [(1.0, 1, 5.0, True)], 1: [(1.0, 1, 0.0, False)]},
}


@pytest.mark.parametrize(("steps", "value"), [(0, 0), (1, 0.1), (2, 2.55), (3, 3.775)])
def test_a_chain_of_two_states(steps, value):
    assert optimal_value(CHAIN, steps) == pytest.approx(value)


@pytest.mark.parametrize(
    ("slippery", "steps", "value"),
    [(False, 6, 1), (False, 5, 0), (True, 50, 0.5459), (True, 100, 0.7442), (True, 3000, 0.8235)],
)
def test_the_lake(slippery, steps, value):
    gymnasium = pytest.importorskip("gymnasium")
    table = gymnasium.make("FrozenLake-v1", is_slippery=slippery).unwrapped.P
    assert optimal_value(table, steps) == pytest.approx(value, abs=5e-5)
