"""Environments with Gymnasium's interface: GEM's, whose observations are texts, and Gymnasium's own with two functions."""

from typing import Any

import pytest

from prefopt import PrefoptError
from prefopt.environments import check_environment
from prefopt.environments.gymnasium import Gymnasium

MOVES = {"left": 0, "down": 1, "right": 2, "up": 3}


class Counting:
    """A text environment of the protocol, whose steps are known; the real packages are below."""

    def reset(self, seed: int) -> Any:
        self.seed, self.steps = seed, 0
        return "begin", {"prefix": "Hear:", "suffix": "Your move."}

    def step(self, action: str) -> Any:
        self.steps += 1
        return (
            f"{action} heard\n",
            0.5,
            action == "end",
            self.steps == 3,
            {"steps": self.steps, "lost": False, "note": "x", "left": float("inf"), 7: 1.0},
        )


def test_texts_rewards_and_ends_are_the_environments() -> None:
    env = Gymnasium(Counting)
    assert env.reset({}, 2**40 + 7) == "Hear:\nbegin\nYour move."
    assert env._env.seed == 7  # GEM takes no larger seed than numpy's
    turn = env.step("go", truncated=False)
    assert (turn.text, turn.reward, turn.done, turn.info) == ("go heard", 0.5, False, {"unread": 0.0})
    last = env.step("end", truncated=False)
    assert last.done and last.info == {"unread": 0.0, "steps": 2.0, "lost": 0.0}
    env.reset({}, 0)
    assert [env.step("go", truncated=False).done for _ in range(3)] == [False, False, True]  # its own limit of time


def test_a_turn_that_was_cut_takes_no_step() -> None:
    env = Gymnasium(Counting)
    env.reset({}, 0)
    turn = env.step("end", truncated=True)
    assert (turn.done, turn.reward, env._env.steps) == (True, 0.0, 0)
    assert Gymnasium(Counting, cut=-1.0).step("end", truncated=True).reward == -1.0


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"make": "nowhere.py:f"}, r"no file nowhere\.py"),
        ({"make": 3}, "make of Gymnasium is a function or its path, not 3"),
        ({"make": Counting, "act": 3}, "act of Gymnasium is a function"),
    ],
)
def test_what_is_no_function_is_refused(fields: Any, message: str) -> None:
    with pytest.raises(PrefoptError, match=message):
        Gymnasium(**fields)


def test_gymnasiums_own_need_words() -> None:
    gymnasium = pytest.importorskip("gymnasium")
    lake = Gymnasium(gymnasium.make, {"id": "FrozenLake-v1", "is_slippery": False}, str, lambda text: MOVES[text])
    assert lake.reset({}, 3) == "0"
    turns = [lake.step(move, truncated=False) for move in ["down", "down", "right", "right", "down", "right"]]
    assert [turn.text for turn in turns] == ["4", "8", "9", "10", "14", "15"]
    assert [turn.reward for turn in turns] == [0, 0, 0, 0, 0, 1] and turns[-1].done
    lake.close()
    with pytest.raises(PrefoptError, match="observation is int and no text: name a function that writes it, `observe`"):
        Gymnasium(gymnasium.make, {"id": "FrozenLake-v1"}).reset({}, 3)


def test_an_action_that_cannot_be_read_is_said_and_no_step() -> None:
    gymnasium = pytest.importorskip("gymnasium")
    lake = Gymnasium(gymnasium.make, {"id": "FrozenLake-v1"}, str, int)
    lake.reset({}, 3)
    turn = lake.step("north", truncated=False)
    assert "invalid literal" in turn.text and turn.info == {"unread": 1.0} and not turn.done  # type: ignore[operator]
    lake.close()


def test_gem_plays_as_it_does_alone() -> None:
    gem = pytest.importorskip("gem")
    game = {"env_id": "game:GuessTheNumber-v0-easy"}
    alone = gem.make(**game)
    opening, _ = alone.reset(seed=5)
    env = Gymnasium("gem:make", game)
    assert env.reset({}, 5).startswith(opening.rstrip()) and env.reset({}, 5).endswith("\nEnter your next guess.")
    for guess in range(1, 4):
        observation, reward, terminated, truncated, _ = alone.step(f"\\boxed{{{guess}}}")
        turn = env.step(f"\\boxed{{{guess}}}", truncated=False)
        assert str(turn.text).startswith(observation) and (turn.reward, turn.done) == (reward, terminated or truncated)
    assert check_environment(Gymnasium("gem:make", game), {"prompt": "Play."}).reward == pytest.approx(-0.1)
