"""What is wrong with the shape of an environment, found by resetting it and taking a step."""

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from numbers import Real
from typing import Any, NamedTuple, TypeVar

import numpy as np
from torch import Tensor

from prefopt.support.errors import PrefoptError
from prefopt.support.plugins import users_code
from prefopt.types import Closing, Environment, Message, Turn

Found = TypeVar("Found")

SURROGATE = re.compile("[\ud800-\udfff]")

A_REWARD = "a reward is a finite number"


class Shown(NamedTuple):
    """What an environment showed of itself while it was checked.

    Attributes:
        opening: what `reset` returned.
        tools: their schemas; none where it offers none.
        turn: what the first `step` answered.
    """

    opening: str | Sequence[Message] | None
    tools: Sequence[Mapping[str, Any]]
    turn: Turn


def check_environment(environment: Environment, row: Mapping[str, Any], name: str = "the environment") -> Turn:
    """Run `reset` and one `step`, and refuse what training could not use; returns what the step answered.

    Args:
        environment: made for this check; it is closed at the end, where it has `close`.
        row: a row of data, with its prompt.
        name: what messages call the environment.

    Raises:
        PrefoptError: says which method, what it did and what it should.
    """
    return shown_by(environment, row, name).turn


def shown_by(environment: Environment, row: Mapping[str, Any], name: str) -> Shown:
    """What an environment shows in the same check; an error names all that can be seen to be wrong at once."""
    faults: list[str] = missing_methods(environment, name)

    def tried(call: Callable[[], Found], otherwise: Found) -> Found:
        try:
            return call()
        except PrefoptError as error:
            faults.append(str(error))
            return otherwise

    def closed() -> None:
        if isinstance(environment, Closing):
            with users_code(f"{name}: close()"):
                environment.close()

    opening, turn, begun = None, Turn(), False
    if callable(getattr(environment, "reset", None)):
        said, begun = tried(lambda: (_reset(environment, row, 0, name), True), (None, False))
        opening = tried(lambda: checked_opening(said, name), None)
    nothing: tuple[str, ...] = ()
    tried(lambda: stop_texts(environment, name), nothing)
    tried(lambda: logged_names(environment, name), nothing)
    no_tools: list[Mapping[str, Any]] = []
    tools = tried(lambda: offered_tools(environment, name), no_tools)
    if begun and callable(getattr(environment, "step", None)):
        turn = tried(lambda: step(environment, "text that the policy wrote", False, name), turn)
    tried(closed, None)
    if faults:
        raise PrefoptError("\n".join(faults))
    return Shown(opening, tools, turn)


def missing_methods(environment: Any, name: str) -> list[str]:
    """That it lacks `reset`, `step` or both, in a sentence; [] where it has them."""
    missing = [repr(method) for method in ("reset", "step") if not callable(getattr(environment, method, None))]
    if not missing:
        return []
    return [
        f"{name} has no method {' and no '.join(missing)}; an environment has reset(row, seed) and step(text, *, truncated)"
    ]


def begin(environment: Environment, row: Mapping[str, Any], seed: int, name: str) -> str | Sequence[Message] | None:
    """What `reset` returns, checked: a text, messages or None.

    Raises:
        PrefoptError: it raised something or returned something else.
    """
    return checked_opening(_reset(environment, row, seed, name), name)


def _reset(environment: Environment, row: Mapping[str, Any], seed: int, name: str) -> Any:
    try:
        return environment.reset(row, seed)
    except (Exception, SystemExit) as error:
        raise PrefoptError(
            f"{name}: reset(row, seed) raised {type(error).__name__}: {error}; the row has {', '.join(map(repr, row)) or 'nothing'}"
        ) from error


def step(environment: Environment, text: str, truncated: bool, name: str) -> Turn:
    """What `step` answers to a text, checked.

    Raises:
        PrefoptError: it raised something, or `checked_turn` refuses what it returned.
    """
    with users_code(f"{name}: step(text, truncated=…)"):
        turn = environment.step(text, truncated=truncated)
    return checked_turn(turn, name)


def stop_texts(environment: Any, name: str) -> tuple[str, ...]:
    """The texts that end a turn in an environment, none of them empty.

    Raises:
        PrefoptError: they are no list of texts.
    """
    texts = _stated(environment, "stop", name)
    if not _are_texts(texts):
        raise PrefoptError(f"{name}: stop is {texts!r}; it is a list of texts that end a turn, such as ('</answer>',)")
    return tuple(dict.fromkeys(text for text in texts if text))


def logged_names(environment: Any, name: str) -> tuple[str, ...]:
    """The numbers that an environment says its turns log.

    Raises:
        PrefoptError: they are no list of names.
    """
    names = _stated(environment, "logs", name)
    if not _are_texts(names):
        raise PrefoptError(
            f"{name}: logs is {names!r}; it is a list of names of the numbers in `info`, such as ('guesses',)"
        )
    return tuple(names)


def offered_tools(environment: Any, name: str) -> list[Mapping[str, Any]]:
    """The JSON schemas of what an environment offers; [] where it offers none.

    Raises:
        PrefoptError: they are no list of schemas.
    """
    tools = _stated(environment, "tools", name)
    if not isinstance(tools, list | tuple) or not all(isinstance(tool, Mapping) for tool in tools):
        raise PrefoptError(
            f"{name}: tools is {tools!r}; it is a list of JSON schemas, as transformers' get_json_schema makes of functions"
        )
    return list(tools)


def _stated(environment: Any, attribute: str, name: str) -> Any:
    """What an attribute says, which may be a property and raise anything; () where there is none, or None."""
    with users_code(f"{name}: {attribute}"):
        stated = getattr(environment, attribute, None)
    return () if stated is None else stated


def _are_texts(value: Any) -> bool:
    return isinstance(value, Iterable) and not isinstance(value, str) and all(map(_is_text, value))


def _is_text(value: Any) -> bool:
    """A text of whole characters: half of one (a lone surrogate) can be in no file."""
    return isinstance(value, str) and not SURROGATE.search(value)


def checked_opening(opening: Any, name: str) -> str | Sequence[Message] | None:
    """What `reset` returned, if it can follow a prompt.

    Raises:
        PrefoptError: it is no text, no messages and not None.
    """
    if not (opening is None or isinstance(opening, str) or _are_messages(opening)):
        raise PrefoptError(
            f"{name}: reset returned {opening!r}; it returns a text, messages, or None where the prompt says all"
        )
    return opening


def checked_turn(turn: Any, name: str) -> Turn:
    """What `step` returned, if an episode can go on with it; its numbers are floats.

    Raises:
        PrefoptError: it is no `Turn`, or one of which a field is of another kind.
    """
    if not isinstance(turn, Turn):
        raise PrefoptError(f"{name}: step returned {turn!r}; it returns prefopt.Turn(text, reward, done, info)")
    faults = list(_faults_of(turn, f"{name}: step"))
    if faults:
        raise PrefoptError("\n".join(faults))
    info = {key: _number(value) or 0.0 for key, value in turn.info.items()}
    return turn._replace(reward=checked_reward(turn.reward, f"{name}: step"), info=info)


def _faults_of(turn: Turn, what: str) -> Iterator[str]:
    """What is wrong with the fields of a turn."""
    if _number(turn.reward) is None:
        yield f"{what} returned the reward {turn.reward!r}; {A_REWARD}"
    if not isinstance(turn.done, bool | np.bool_):
        yield f"{what} returned done={turn.done!r}; it is True where the episode is over, else False"
    if not (isinstance(turn.text, str) or _are_messages(turn.text)):
        yield f"{what} returned text={turn.text!r}; it is a text, or messages"
    if not isinstance(turn.info, Mapping):
        yield f"{what} returned info={turn.info!r}; it maps names to numbers, {{}} for none"
        return
    for key, value in turn.info.items():
        if not _is_text(key):
            yield f"{what} returned {key!r} as a name in `info`; a name is a text"
        if _number(value) is None:
            yield f"{what} returned info[{key!r}]={value!r}; `info` holds finite numbers, to be logged"


def checked_reward(reward: Any, what: str) -> float:
    """A reward, if it is one.

    Raises:
        PrefoptError: it is no finite number.
    """
    number = _number(reward)
    if number is None:
        raise PrefoptError(f"{what} returned the reward {reward!r}; {A_REWARD}")
    return number


def _are_messages(value: Any) -> bool:
    return isinstance(value, list | tuple) and all(
        isinstance(message, Mapping) and "role" in message for message in value
    )


def _number(value: Any) -> float | None:
    """A finite number as a float: Python's or NumPy's, True and False as 1 and 0, or a tensor or an array of no dimension."""
    if isinstance(value, Tensor | np.ndarray | np.generic) and value.ndim == 0:
        value = value.item()
    try:
        number = float(value) if isinstance(value, Real) else math.nan
    except OverflowError:  # an integer
        return None
    return number if math.isfinite(number) else None
