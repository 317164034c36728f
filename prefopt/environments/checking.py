"""What is wrong with the shape of an environment, found by resetting it and taking a step."""

import math
from collections.abc import Mapping
from typing import Any

from prefopt.support.errors import PrefoptError
from prefopt.support.plugins import users_code
from prefopt.types import Closing, Environment, Turn


def check_environment(environment: Environment, row: Mapping[str, Any], name: str = "the environment") -> Turn:
    """Run `reset` and one `step`, and refuse what training could not use; returns what the step answered.

    Args:
        environment: made for this check; it is closed at the end, where it has `close`.
        row: a row of data, with its prompt.
        name: what messages call the environment.

    Raises:
        PrefoptError: says which method, what it did and what it should.
    """
    begin(environment, row, 0, name)
    turn = step(environment, "text that the policy wrote", False, name)
    if isinstance(environment, Closing):
        environment.close()
    return turn


def begin(environment: Environment, row: Mapping[str, Any], seed: int, name: str) -> Any:
    """What `reset` returns, checked: a text, messages or None.

    Raises:
        PrefoptError: it raised something or returned something else.
    """
    try:
        opening = environment.reset(row, seed)
    except (Exception, SystemExit) as error:
        raise PrefoptError(
            f"{name}: reset(row, seed) raised {type(error).__name__}: {error}; the row has {', '.join(map(repr, row)) or 'nothing'}"
        ) from error
    messages = isinstance(opening, list | tuple) and all(isinstance(message, Mapping) for message in opening)
    if not (opening is None or isinstance(opening, str) or messages):
        raise PrefoptError(
            f"{name}: reset returned {opening!r}; it returns a text, messages, or None where the prompt says all"
        )
    return opening


def step(environment: Environment, text: str, truncated: bool, name: str) -> Turn:
    """What `step` answers to a text, checked.

    Raises:
        PrefoptError: it raised something, returned no `Turn`, or one with a reward that is not a finite number.
    """
    with users_code(f"{name}: step(text, truncated=…)"):
        turn = environment.step(text, truncated=truncated)
    if not isinstance(turn, Turn):
        raise PrefoptError(f"{name}: step returned {turn!r}; it returns prefopt.Turn(text, reward, done, info)")
    if isinstance(turn.reward, bool) or not isinstance(turn.reward, int | float) or not math.isfinite(turn.reward):
        raise PrefoptError(f"{name}: step returned the reward {turn.reward!r}; a reward is a finite number")
    if not isinstance(turn.done, bool):
        raise PrefoptError(
            f"{name}: step returned done={turn.done!r}; it is True where the episode is over, else False"
        )
    return turn
