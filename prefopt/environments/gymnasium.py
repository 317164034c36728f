"""Environments with Gymnasium's interface as environments of a policy: those of GEM, whose texts need nothing, and any other."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import isfinite
from numbers import Real
from typing import Any

from prefopt.support.errors import PrefoptError
from prefopt.support.plugins import load_object
from prefopt.types import Turn

SEEDS = 2**32
"""GEM gives its seed to numpy's global state, which takes no larger one."""


@dataclass
class Gymnasium:
    """`reset(seed) -> observation, info` and `step(action) -> observation, reward, terminated, truncated, info`.

        environment: {name: Gymnasium, make: gem:make, arguments: {env_id: "game:GuessTheNumber-v0-easy"}}
        environment: {name: Gymnasium, make: gymnasium:make, arguments: {id: FrozenLake-v1},
                      observe: "lake.py:as_text", act: "lake.py:as_move"}

    What the environment says follows the prompt of the data; GEM's `prefix` and `suffix`, from its info, stand around it. The info
    of the last step is logged, as far as it is numbers. A turn that was cut ends the episode without a step.

    Attributes:
        make: makes an environment, by path or as it is.
        arguments: for it.
        observe: observation → text; None where it is text.
        act: text → action; None where that is text. Where it raises ValueError, the policy reads the message in the place of an
            observation, and no step is taken (`unread` in the info).
        stop: texts that end a turn, such as the names of all actions; without, the policy's end token does.
        cut: the reward of a turn that was cut. Where episodes cost something, 0 would pay for ending them so.
    """

    make: Any
    arguments: Mapping[str, Any] = field(default_factory=dict)
    observe: Any = None
    act: Any = None
    stop: Sequence[str] = ()
    cut: float = 0.0

    logs = ("unread",)

    def __post_init__(self) -> None:
        self._make, self._observe, self._act = (self._function(name) for name in ("make", "observe", "act"))
        self._env: Any = None

    def _function(self, name: str) -> Any:
        given = getattr(self, name)
        function = load_object(given) if isinstance(given, str) else given
        if not (callable(function) or (function is None and name != "make")):
            raise PrefoptError(f"{name} of Gymnasium is a function or its path, not {function!r}")
        return function

    def reset(self, row: Mapping[str, Any], seed: int) -> str:
        """Begin, with a new environment where there is none yet."""
        self._env = self._make(**self.arguments) if self._env is None else self._env
        observation, info = self._env.reset(seed=seed % SEEDS)
        return self._text(observation, info)

    def step(self, text: str, *, truncated: bool) -> Turn:
        """Take a step with the action that a turn is."""
        if truncated:
            return Turn(reward=self.cut, done=True)
        try:
            action = text if self._act is None else self._act(text)
        except ValueError as error:
            return Turn(str(error), info={"unread": 1.0})
        observation, reward, terminated, cut, info = self._env.step(action)
        done = bool(terminated or cut)
        last = info.items() if done else ()
        numbers = {
            key: float(value)
            for key, value in last
            if isinstance(key, str) and isinstance(value, Real) and isfinite(value)
        }
        return Turn(self._text(observation, info), float(reward), done, {"unread": 0.0, **numbers})

    def close(self) -> None:
        """Close the environment, where it can be."""
        if hasattr(self._env, "close"):
            self._env.close()
        self._env = None

    def _text(self, observation: Any, info: Mapping[str, Any]) -> str:
        text = observation if self._observe is None else self._observe(observation)
        if not isinstance(text, str):
            raise PrefoptError(
                f"the environment's observation is {type(text).__name__} and no text: name a function that writes it, `observe`"
            )
        return "\n".join(part for part in (info.get("prefix"), text.rstrip("\n"), info.get("suffix")) if part)
