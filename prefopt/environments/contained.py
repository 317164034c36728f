"""An environment that can stop nothing but its own episode: its errors, its time and its random numbers are contained."""

import logging
import random
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from functools import lru_cache
from typing import Any, cast

import numpy as np
import torch

from prefopt.environments.checking import checked_opening, checked_reward, checked_turn
from prefopt.support.errors import PrefoptError
from prefopt.support.time_limits import LateError, within
from prefopt.types import Closing, Ending, Environment, Message, Turn

log = logging.getLogger(__name__)


COUNTS = ("retried", "failed", "timed_out", "unkept")
"""What is counted of an episode, beside the numbers that its environment logs."""


_UNKEPT: set[str] = set()
"""The environments of which a turn that a chat template does not keep was told."""


class EpisodeError(Exception):
    """An environment raised something twice, or did not answer in time: its episode is over, and has no verdict."""


class Contained:
    """The environment of one completion.

    What it raises has it made again, reset with the same row and seed and taken through the same turns; if it fails again, or
    says something else on the way, the episode has failed. A call that takes too long fails at once: it goes on in a thread to
    which nobody listens, because Python cannot stop one.

    The generators of `random`, NumPy and torch that all of the process share are the environment's own while it is called, and
    begin with its seed: packages that seed them, or draw from them, change nothing outside, and no episode changes another.

    Args:
        factory: makes it.
        row: of the data, with its prompt.
        seed: of the task.
        name: what messages call it.
        timeout: seconds for one call; None is any time.

    Attributes:
        counts: what happened, by the names in `COUNTS`.
    """

    def __init__(
        self, factory: Callable[[], Environment], row: Mapping[str, Any], seed: int, name: str, timeout: float | None
    ):
        self.factory, self.row, self.seed, self.name, self.timeout = factory, row, seed, name, timeout
        self.counts: Counter[str] = Counter()
        self._past: list[tuple[str, bool, Turn]] = []
        self.environment: Any = None
        self._open = False
        self._opening: Any = None
        self._random = _States(seed)

    def _reset(self) -> Any:
        """A new environment, at the beginning of its task; what it says there."""
        self._random = _States(self.seed)
        self.environment = self._call(self.factory)
        self._open = True
        # A list that either adds to later is its own.
        return deepcopy(self._call(self.environment.reset, deepcopy(self.row), self.seed))

    def begin(self) -> str | Sequence[Message] | None:
        """What `reset` returns.

        Raises:
            EpisodeError: it failed.
            PrefoptError: it returned something else than it should.
        """
        self._opening = self._twice(self._reset, self._reset)
        return checked_opening(self._opening, self.name)

    def step(self, text: str, truncated: bool) -> Turn:
        """What it answers to a turn of the policy.

        Raises:
            EpisodeError: it failed.
            PrefoptError: it returned something else than it should.
        """
        answer = self._again_if_it_fails(lambda: self._call(self.environment.step, text, truncated=truncated))
        turn = checked_turn(answer, self.name)
        turn = turn._replace(text=deepcopy(turn.text))
        self._past.append((text, truncated, turn))
        return turn

    def end(self) -> float:
        """The reward that it has left for an episode which it did not end itself; 0 where it says none.

        Raises:
            EpisodeError: it failed.
            PrefoptError: it returned something else than a number.
        """
        if not isinstance(self.environment, Ending):
            return 0.0
        return checked_reward(
            self._again_if_it_fails(lambda: self._call(cast(Ending, self.environment).end)), f"{self.name}: end()"
        )

    def lose(self, error: PrefoptError) -> None:
        """Note that the chat template cannot hold what it answered, so that its episode has no verdict."""
        self.counts["unkept"] = 1
        if self.name not in _UNKEPT:  # each has a message of its own
            _UNKEPT.add(self.name)
            _warn(f"{error}; its episode has no verdict")

    def close(self) -> None:
        """Release what it holds; what it raises then is logged, and changes nothing about its episode."""
        if self._open and isinstance(self.environment, Closing):
            self._open = False
            try:
                self._call(self.environment.close)
            except LateError:
                _warn_once(f"{self.name}: close() was not back after {self.timeout:g} seconds")
            except Exception as error:
                _warn_once(f"{self.name}: close() raised {type(error).__name__}: {error}")

    def _again_if_it_fails(self, call: Callable[[], Any]) -> Any:
        """A call within an episode, which a new environment is taken to first if it fails."""

        def again() -> Any:
            self._replay()
            return call()

        return self._twice(call, again)

    def _twice(self, call: Callable[[], Any], again: Callable[[], Any]) -> Any:
        """What a call returns, or else what the second try does. A `PrefoptError` is for the user, and goes through."""
        try:
            return call()
        except PrefoptError:
            raise
        except LateError as error:
            raise self._late() from error
        except Exception as error:
            self.counts["retried"] += 1
            _warn_once(f"{self.name} raised {type(error).__name__}: {error}; its episode is played again")
        try:
            self.close()
            return again()
        except PrefoptError:
            raise
        except LateError as error:
            raise self._late() from error
        except Exception as error:
            self.counts["failed"] += 1
            _warn_once(f"{self.name} raised {type(error).__name__}: {error} again; its episode has no verdict")
            raise EpisodeError from error

    def _late(self) -> EpisodeError:
        self.counts["timed_out"] = 1
        _warn_once(f"{self.name} was not back after {self.timeout:g} seconds; its episode has no verdict")
        return EpisodeError("it was not back in time")

    def _replay(self) -> None:
        """Take a new environment to where the old one was."""
        same = self._reset() == self._opening
        for text, truncated, turn in self._past:
            same = same and self._call(self.environment.step, text, truncated=truncated) == turn
        if not same:
            raise RuntimeError("the same row, seed and turns had other answers than before")

    def _call(self, function: Callable[..., Any], *args: Any, **given: Any) -> Any:
        """Call it with its own random states, and for no longer than it may take.

        Raises:
            LateError: it took longer.
        """
        with self._random.own():
            return within(self.timeout, self.name, lambda: function(*args, **given))


@lru_cache(maxsize=64)
def _warn_once(message: str) -> None:
    """The first of its kind; metrics count all of them."""
    _warn(message)


def _warn(message: str) -> None:
    log.warning("%s (`environment/…` in the metrics counts such)", message)


class _States:
    """The states of the generators that a process shares, as one environment left them."""

    def __init__(self, seed: int):
        self.seed = seed
        self.states: Any = None  # until it is called for the first time

    @contextmanager
    def own(self) -> Iterator[None]:
        """They are the environment's within, and what they were afterwards."""
        outside = _states()
        if self.states is None:
            random.seed(self.seed)
            np.random.seed(self.seed % 2**32)
            torch.default_generator.manual_seed(self.seed)
        else:
            _restore(self.states)
        try:
            yield
        finally:
            self.states = _states()
            _restore(outside)


def _states() -> tuple[Any, Any, Any]:
    return random.getstate(), np.random.get_state(), torch.get_rng_state()


def _restore(states: tuple[Any, Any, Any]) -> None:
    random.setstate(states[0])
    np.random.set_state(states[1])
    torch.set_rng_state(states[2])
