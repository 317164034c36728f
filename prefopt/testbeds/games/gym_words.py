"""Gymnasium's FrozenLake-v1 and CartPole-v1 in words: what is seen, and what is done, one token each or two."""

import math
from bisect import bisect
from collections.abc import Sequence

COLUMNS = 4
SQUARES = tuple(f"{row}{column}" for row in "abcd" for column in range(1, COLUMNS + 1))
"""The states of the lake, row by row: one starts on a1, and the goal is d4."""

MOVES = ("left", "down", "right", "up")
"""Gymnasium's actions on the lake, in its order."""

PUSHES = ("left", "right")
"""Gymnasium's actions on the cart, in its order."""

DEGREE = math.pi / 180
POSITIONS, SPEEDS = (-0.8, 0.8), (-0.5, 0.5)
ANGLES, TURNING = (-6 * DEGREE, -DEGREE, 0.0, DEGREE, 6 * DEGREE), (-50 * DEGREE, 50 * DEGREE)
"""Where the 162 boxes of Barto, Sutton and Anderson 1983 (§5) part: metres, m/s, radians, radians/s."""

SIGNED = {3: ("-1", "0", "+1"), 6: ("-3", "-2", "-1", "+1", "+2", "+3")}
CARTS = tuple(f"cart:{place},{speed}" for place in SIGNED[3] for speed in SIGNED[3])
POLES = tuple(f"pole:{angle},{speed}" for angle in SIGNED[6] for speed in SIGNED[3])


def square(state: int) -> str:
    """The name of a state of the lake, as on a chess board: rows a to d from the top, columns 1 to 4."""
    return SQUARES[state]


def square_apart(state: int) -> str:
    """The same with a space on either side, for a feedback that reads the turns of an episode one after the other."""
    return f" {square(state)} "


def move(text: str) -> int:
    """A move on the lake.

    Raises:
        ValueError: it is none.
    """
    return _action(text, MOVES)


def boxes(observation: Sequence[float]) -> str:
    """Which of the 162 boxes the cart and its pole are in, as two words: `cart:-1,0 pole:+2,+1`.

    -1, 0 and +1 are left, middle and right, or to the left, slow and to the right. The pole's angle has three sizes to each side,
    up to 1, up to 6 and beyond 6 degrees.

    Args:
        observation: the cart's position and speed, the pole's angle and angular speed.
    """
    place, speed, angle, turning = map(float, observation)
    cart = f"cart:{_level(place, POSITIONS)},{_level(speed, SPEEDS)}"
    return f"{cart} pole:{_level(angle, ANGLES)},{_level(turning, TURNING)}"


def push(text: str) -> int:
    """A push of the cart.

    Raises:
        ValueError: it is none.
    """
    return _action(text, PUSHES)


def _level(value: float, edges: Sequence[float]) -> str:
    return SIGNED[len(edges) + 1][bisect(edges, value)]


def _action(text: str, known: Sequence[str]) -> int:
    if text.strip() not in known:
        raise ValueError(f"{text.strip()!r} is none of {', '.join(known)}")
    return known.index(text.strip())
