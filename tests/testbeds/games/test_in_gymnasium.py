"""The lake and the cart through the adapter to Gymnasium, as the recipes have them."""

import pytest

from prefopt.environments import environment_factory
from prefopt.recipe import load_recipe
from prefopt.testbeds.games import corpus
from prefopt.testbeds.games.language import VOCABULARY

pytest.importorskip("gymnasium")


@pytest.fixture
def made():
    envs = []

    def make(recipe):
        spec = load_recipe(recipe).source.rollouts.environment
        envs.append(environment_factory(spec)())
        return envs[-1]

    yield make
    for env in envs:
        env.close()


def test_the_shortest_way_across_the_lake(made):
    lake = made("pocket/agents/gridworld/ppo")
    assert lake.reset({}, 0) == "a1" and list(lake.stop) == ["left", "down", "right", "up"]
    turns = [lake.step(move, truncated=False) for move in ("down", "down", "right", "right", "down", "right")]
    assert [turn.text for turn in turns] == ["b1", "c1", "c2", "c3", "d3", "d4"]
    assert [turn.reward for turn in turns] == [0, 0, 0, 0, 0, 1] and turns[-1].done


def test_a_word_that_is_no_action_is_worse_than_a_hole(made):
    lake = made("pocket/agents/gridworld/grpo")
    lake.reset({}, 0)
    assert lake.step("king", truncated=True).reward == -1
    lake.reset({}, 0)
    lake.step("right", truncated=False)
    hole = lake.step("down", truncated=False)
    assert (hole.text, hole.reward, hole.done) == ("b2", 0, True)


def test_the_pole_falls_to_where_the_cart_runs_from(made):
    cart = made("pocket/agents/cartpole/ppo")
    assert str(cart.reset({}, 0)).startswith("cart:0,0 pole:")
    turns = []
    while not turns or not turns[-1].done:
        turns.append(cart.step("right", truncated=False))
    assert turns[-1].text == "cart:0,+1 pole:-3,-1" and turns[-1].reward == -1 and turns[0].reward == 0


def test_the_corpus_has_no_word_that_the_model_does_not_know():
    rows = list(corpus(6))
    assert [row["prompt"] for row in rows] == ["lake", "cartpole", "kuhn"] * 2
    assert all(len(row["completion"].split()) == 600 for row in rows)
    assert {word for row in rows for word in row["completion"].split()} <= set(VOCABULARY)
    assert rows == list(corpus(6))
