"""What is seen and done on the lake and on the cart, in words."""

import math

import pytest

from prefopt.testbeds.games import boxes, move, push, square
from prefopt.testbeds.games.gym_words import CARTS, POLES, SQUARES


def test_squares_are_named_row_by_row():
    assert [square(state) for state in (0, 3, 4, 15)] == ["a1", "a4", "b1", "d4"]
    assert len(set(SQUARES)) == 16


def test_moves_and_pushes_have_gymnasiums_numbers():
    assert [move(f" {text}") for text in ("left", "down", "right", "up")] == [0, 1, 2, 3]
    assert [push(text) for text in ("left", "right")] == [0, 1]


def test_what_is_no_action_is_said():
    with pytest.raises(ValueError, match="'up' is none of left, right"):
        push("up")
    with pytest.raises(ValueError, match="'north' is none of left, down, right, up"):
        move("north")


@pytest.mark.parametrize(
    ("observation", "text"),
    [
        ((0, 0, 0.001, 0), "cart:0,0 pole:+1,0"),
        ((-1, -0.6, math.radians(-3), math.radians(-60)), "cart:-1,-1 pole:-2,-1"),
        ((1, 0.6, math.radians(7), math.radians(60)), "cart:+1,+1 pole:+3,+1"),
    ],
)
def test_the_boxes_of_barto_sutton_and_anderson(observation, text):
    assert boxes(observation) == text


def test_all_boxes_have_words():
    edges = [(-1, 0, 1), (-1, 0, 1), [math.radians(a) for a in (-7, -3, -0.5, 0.5, 3, 7)], (-1, 0, 1)]
    seen = {boxes((x, v, a, w)) for x in edges[0] for v in edges[1] for a in edges[2] for w in edges[3]}
    assert len(seen) == 162
    assert {text.split()[0] for text in seen} == set(CARTS) and {text.split()[1] for text in seen} == set(POLES)
