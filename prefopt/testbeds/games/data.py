"""Rows of the games: prompts to play from, and transcripts of play at random."""

from collections.abc import Callable, Iterator
from random import Random
from typing import Any

from prefopt.support.extras import extra

from .gym_words import MOVES, PUSHES, boxes, square
from .kuhn import ACTIONS, ROLES, History, deal, over

Columns = dict[str, Any]


def prompts(n: int, game: str = "lake", seed: int = 0) -> Iterator[Columns]:
    """Prompts that say which game it is; what differs otherwise is the `task`, and the seed that its episodes have.

    Args:
        n: number of rows.
        game: lake, cartpole or kuhn, where the column `role` is first and second by turns.
        seed: tells tasks of other rows apart.
    """
    for i in range(n):
        role = ROLES[i % 2]
        row = {"prompt": f"{game} {role}", "role": role} if game == "kuhn" else {"prompt": game}
        yield {**row, "task": f"{seed} {i}", "group": f"{seed} {i}"}


def corpus(n: int, seed: int = 0, words: int = 600) -> Iterator[Columns]:
    """What the language model of the games learns from, as `prompt/completion`: games one after the other, played at random.

    Args:
        n: number of rows; the games take turns.
        seed: fixes all of them.
        words: of a completion.
    """
    gym = extra("gymnasium", "agents", "games:corpus")
    players: tuple[tuple[str, Callable[[Random], list[str]]], ...] = (
        ("lake", _gymnasium(gym.make("FrozenLake-v1", is_slippery=True), square, MOVES)),
        ("cartpole", _gymnasium(gym.make("CartPole-v1"), boxes, PUSHES)),
        ("kuhn", _poker),
    )
    for i in range(n):
        random = Random(f"corpus {seed} {i}")
        game, play = players[i % len(players)]
        written = play(random)
        while len(written) < words:
            written += [game, *play(random)]
        yield {"prompt": game, "completion": " " + " ".join(written[:words]), "group": str(i)}


def _gymnasium(env: Any, observe: Callable[[Any], str], actions: tuple[str, ...]) -> Callable[[Random], list[str]]:
    """A function that plays an episode at random, and gives its words."""

    def play(random: Random) -> list[str]:
        observation, _ = env.reset(seed=random.randrange(2**32))
        written, over = observe(observation).split(), False
        while not over:
            action = random.randrange(len(actions))
            observation, _, ended, cut, _ = env.step(action)
            over = ended or cut
            written += [actions[action], *observe(observation).split()]
        return written

    return play


def _poker(random: Random) -> list[str]:
    """The words of a hand as one of the players knows them."""
    role, cards = random.randrange(2), deal(random.randrange(2**32))
    history: History = ()
    while not over(history):
        history = (*history, random.choice(ACTIONS))
    return [ROLES[role], cards[role], *history]
