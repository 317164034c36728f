"""TextArena's games, alone and against an opponent: the policy reads what is new, and gets the reward that the game gives it."""

from typing import Any

import pytest

from prefopt import PrefoptError
from prefopt.environments.textarena import TextArena, random_move

pytest.importorskip("textarena")


def test_a_game_of_one() -> None:
    env = TextArena("GuessTheNumber-v0")
    opening = env.reset({}, 3)
    number = env._env.game_number
    assert opening.startswith("You are Player 0.") and "[GAME]" not in opening
    low = env.step(f"I say [{number - 1}]", truncated=False)
    assert (low.text, low.reward, low.done) == (
        "The target number is higher.",
        0.0,
        False,
    )  # not its own move, nor the rules again
    won = env.step(f"[{number}]", truncated=False)
    assert (won.reward, won.done, won.info) == (1.0, True, {"invalid_move": 0.0, "turn_count": 2.0})


def test_in_a_text_what_is_said_has_lines_of_its_own() -> None:
    env = TextArena("GuessTheNumber-v0")
    assert env.reset({"prompt": "Play."}, 3).startswith("\nYou are Player 0.")
    number = env._env.game_number
    assert env.step(f"[{number - 1}]", truncated=False).text == "\nThe target number is higher.\n"


def test_the_seed_decides_the_game() -> None:
    env = TextArena("GuessTheNumber-v0")
    numbers = []
    for seed in (1, 1, *range(2, 8)):
        env.reset({}, seed)
        numbers.append(env._env.game_number)
    assert numbers[0] == numbers[1] and len(set(numbers)) > 2


def first_free(observation: str) -> str:
    return "[" + observation.split("Available Moves: '[")[-1].partition("]")[0] + "]"


@pytest.mark.parametrize("player", [0, 1])
def test_an_opponent_plays_the_other_side(player: int) -> None:
    seen: list[str] = []

    def opponent(observation: str) -> str:
        seen.append(observation)
        return first_free(observation)

    env = TextArena("TicTacToe-v0", opponent, player)
    opening = env.reset({}, 0)
    assert opening.startswith(f"You are Player {player}") and ("[Player 0] [0]" in opening) == (player == 1)
    moves = ["[3]", "[4]"] if player else ["[2]", "[4]", "[6]"]
    for move in moves[:-1]:
        turn = env.step(move, truncated=False)
        assert not turn.done and f"[Player {1 - player}]" in turn.text and f"[Player {player}]" not in turn.text
    last = env.step(moves[-1], truncated=False)
    assert (last.done, last.reward) == (True, -1.0 if player else 1.0)
    assert seen[0].startswith(f"You are Player {1 - player}") and seen[-1].startswith(seen[0])  # all that it has seen


def test_who_the_policy_is_follows_the_seed() -> None:
    openings = [TextArena("TicTacToe-v0", random_move).reset({}, seed)[:16] for seed in range(3)]
    assert openings == ["You are Player 0", "You are Player 1", "You are Player 0"]


def test_the_random_opponent_plays_to_the_end() -> None:
    env = TextArena("TicTacToe-v0", random_move, 0)
    text = env.reset({}, 1)
    for _ in range(9):
        turn = env.step(first_free(text), truncated=False)
        if turn.done:
            break
        text = str(turn.text)
    assert turn.done and turn.reward in (-1.0, 0.0, 1.0) and not turn.info["invalid_move"]
    assert random_move("no list of them") == ""


def test_a_turn_that_was_cut_makes_no_move() -> None:
    env = TextArena("GuessTheNumber-v0")
    env.reset({}, 3)
    turn = env.step(f"[{env._env.game_number}]", truncated=True)
    assert (turn.done, turn.reward) == (True, 0.0) and not env._env.guessed_numbers


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"game": "GuessTheNumber"}, "no game 'GuessTheNumber'. Did you mean 'GuessTheNumber-v0'"),
        ({"game": "TicTacToe-v0", "players": 2}, "a game of 2 needs an opponent: name a function"),
        ({"game": "TicTacToe-v0", "opponent": random_move, "player": 2}, "player is one of 0 to 1, got 2"),
    ],
)
def test_what_cannot_be_played_is_refused(fields: Any, message: str) -> None:
    with pytest.raises(PrefoptError, match=message):
        TextArena(**fields)
