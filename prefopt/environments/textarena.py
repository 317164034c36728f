"""TextArena's games as environments: alone, or against an opponent."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from random import choice
from typing import Any

from prefopt.support.errors import PrefoptError, nearest
from prefopt.support.extras import extra
from prefopt.support.plugins import load_object
from prefopt.types import Turn


def random_move(observation: str) -> str:
    """An opponent that takes one of the moves in square brackets after the last `moves:`, where the game lists them."""
    moves = re.findall(r"\[[^\[\]]+\]", observation[observation.lower().rfind("moves:") :])
    return choice(moves) if moves else ""


@dataclass
class TextArena:
    """A game by its name, `GuessTheNumber-v0`; games of several players have an opponent, who plays all the others.

    The policy reads what is new to it since its last turn, not what TextArena's own wrappers give, which is everything from the
    beginning, its own moves among it. The prompt of the data comes first, then the game's. The reward is the game's, at its end;
    the info has `invalid_move`, `turn_count` and other numbers that the game has of the player. A turn that was cut makes no move,
    and is not rewarded.

    TextArena draws from Python's own random numbers, which it seeds; a run keeps an episode's apart from all others.

    Attributes:
        game: its name with TextArena.
        opponent: observation → move, with all that this player has seen; a path, or a function. None for games of one.
        player: who the policy is, from 0; None lets the seed decide.
        players: how many there are; None is one without and two with an opponent.
    """

    game: str
    opponent: Any = None
    player: int | None = None
    players: int | None = None

    logs = ("invalid_move", "turn_count")

    def __post_init__(self) -> None:
        self._textarena = extra("textarena", "agents", "TextArena")
        known = list(self._textarena.envs.registration.ENV_REGISTRY)
        if self.game not in known:
            raise PrefoptError(f"TextArena has no game {self.game!r}.{nearest(self.game, known)}")
        self._count = self.players or (1 if self.opponent is None else 2)
        if self._count > 1 and self.opponent is None:
            raise PrefoptError(
                f"a game of {self._count} needs an opponent: name a function of what it has seen, `opponent`"
            )
        if self.player is not None and not 0 <= self.player < self._count:
            raise PrefoptError(f"player is one of 0 to {self._count - 1}, got {self.player}")
        self._opponent = load_object(self.opponent) if isinstance(self.opponent, str) else self.opponent

    def reset(self, row: Mapping[str, Any], seed: int) -> str:
        """Begin; opponents move until it is the policy's turn."""
        self._env = self._textarena.make(self.game)
        self._env.reset(num_players=self._count, seed=seed)
        self._me = seed % self._count if self.player is None else self.player
        self._seen: dict[int, str] = {}
        self._others(False)
        self._lines = "\n{}\n" if isinstance(row.get("prompt"), str) else "{}"  # a text goes on as it is
        return self._lines.format(self._news(self._me))

    def step(self, text: str, *, truncated: bool) -> Turn:
        """Make the policy's move, and then the others'."""
        if truncated or self._others(self._move(text)):
            return self._ended() if not truncated else Turn(done=True)
        return Turn(self._lines.format(self._news(self._me)))

    def _move(self, text: str) -> bool:
        done, _ = self._env.step(action=text)
        return bool(done)

    def _others(self, done: bool) -> bool:
        """Let opponents move until it is the policy's turn, or the game is over."""
        while not done and (player := self._env.state.current_player_id) != self._me:
            self._seen[player] = self._seen.get(player, "") + self._news(player)
            done = self._move(self._opponent(self._seen[player]))
        return done

    def _news(self, player: int) -> str:
        """What the game and others said since this player last heard."""
        state = self._env.state
        events, state.observations[player] = state.observations[player], []
        names = state.role_mapping
        return "\n".join(
            text if sender == self._textarena.GAME_ID else f"[{names.get(sender, f'Player {sender}')}] {text}"
            for sender, text, _ in events
            if sender != player
        )

    def _ended(self) -> Turn:
        rewards, info = self._env.close()
        numbers = {key: float(value) for key, value in info.get(self._me, {}).items() if isinstance(value, int | float)}
        return Turn(reward=float(rewards[self._me]), done=True, info=numbers)
