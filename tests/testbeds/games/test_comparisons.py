"""Segments of play on the lake: what is compared, how often the comparison is right, and that they read as episodes do."""

from itertools import pairwise

import pytest

from prefopt.data.steps import joined_steps
from prefopt.recipe import load_recipe
from prefopt.testbeds.games import optimal_value, segments, square_apart
from prefopt.testbeds.games.gym_words import MOVES, SQUARES
from prefopt.testbeds.games.language import tokenizer

gymnasium = pytest.importorskip("gymnasium")
GOAL = " d3 right"


def goals(steps):
    return steps.count(GOAL)


def test_of_two_segments_the_one_with_more_goals_is_chosen_nearly_always():
    rows = list(segments(300, seed=7))
    assert rows == list(segments(300, seed=7)) and rows[0] != next(segments(1, seed=8))
    assert all(goals(row["chosen"]) != goals(row["rejected"]) for row in rows)
    right = [goals(row["chosen"]) > goals(row["rejected"]) for row in rows]
    assert 0.97 < sum(right) / len(right) < 1
    assert {len(row["chosen"]) for row in rows} | {len(row["rejected"]) for row in rows} == set(range(1, 41))
    drawn = [row["drawn"] for row in rows]
    assert all(a < b for a, b in pairwise(drawn)) and drawn[-1] > 400


def test_without_nats_the_labels_are_random():
    right = [goals(row["chosen"]) > goals(row["rejected"]) for row in segments(400, nats=0)]
    assert 0.4 < sum(right) / len(right) < 0.6


def test_a_step_leads_to_the_next_or_ends_at_the_goal_or_a_hole():
    table = gymnasium.make("FrozenLake-v1", is_slippery=False).unwrapped.P
    for row in segments(50):
        for here, there in pairwise(row["rejected"]):
            square, move = here.split()
            ((_, after, _, over),) = table[SQUARES.index(square)][MOVES.index(move)]
            assert over or SQUARES[after] == there.split()[0]
    assert optimal_value(table, 6) == 1


def test_a_segment_is_read_as_an_episode_is():
    """Turns of an episode stand one after the other, and a tokenizer of words tells them apart by spaces alone."""
    row, steps = joined_steps({**next(segments(1)), "chosen": [" a1 down", " b1 down"]}, "paired", "here")
    read = tokenizer()
    episode = "lake" + square_apart(0) + "down" + square_apart(4) + "down"
    assert read(episode)["input_ids"] == read(row["prompt"] + row["chosen"])["input_ids"]
    assert steps[0] == (" a1 down", " b1 down")


def test_the_recipe_of_ppo_sees_squares_apart_in_learning_and_in_evaluation():
    recipe = load_recipe("pocket/agents/gridworld/segments_ppo")
    worlds = (recipe.source.rollouts.environment, recipe.evaluate.environment)
    assert [world.observe for world in worlds] == ["prefopt.testbeds.games:square_apart"] * 2
    assert [world.max_turns for world in worlds] == [20, 100]
