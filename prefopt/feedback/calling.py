"""What a feedback may be beside a function, and calling one: its verdict is checked and its time is limited."""

import inspect
import math
import reprlib
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol, TypeVar, runtime_checkable

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from torch import Tensor

from prefopt.feedback.verdicts import checked
from prefopt.support.errors import PrefoptError
from prefopt.support.plugins import users_code
from prefopt.support.time_limits import LateError, within
from prefopt.types import Completion, Feedback, Prompt, Verdict

T = TypeVar("T")


@runtime_checkable
class Stateful(Protocol):
    """What has running numbers, which a checkpoint must hold: a feedback, or a part of one."""

    def state_dict(self) -> dict[str, Any]:
        """The numbers."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take them up again."""
        ...


@runtime_checkable
class Loadable(Protocol):
    """What needs something from disk: a model, a tokenizer, a function."""

    def check(self) -> None:
        """Refuse what is not there or cannot serve; loads no model."""
        ...

    def load(self) -> None:
        """Load it now, and not at the first call, in the middle of a run."""
        ...


@runtime_checkable
class Spending(Protocol):
    """What costs something: a judge."""

    @property
    def spent(self) -> Mapping[str, float]:
        """What it has used so far, by name: calls, tokens, money."""
        ...


@runtime_checkable
class Prefetching(Protocol):
    """What can be asked ahead, while the policy still writes other texts: a judge on a server, which remembers the answers."""

    @property
    def prefetches(self) -> bool:
        """Whether it does, the way it is set up."""
        ...

    def prefetch(
        self, prompts: Sequence[Prompt], completions: Sequence[Sequence[Completion]], rows: Sequence[Mapping[str, Any]]
    ) -> None:
        """Begin to ask in the background what it will be called with later, among more."""
        ...


@runtime_checkable
class Composite(Protocol):
    """A feedback that is made of others: they are loaded, fitted and saved with it, and decide which processes call it."""

    @property
    def parts(self) -> Sequence[Any]:
        """The feedbacks, or transforms, that it holds."""
        ...


@runtime_checkable
class Collective(Protocol):
    """What all processes may have to call together, because each does a share of the work."""

    @property
    def collective(self) -> bool:
        """Whether they have to; otherwise the main process calls it, and all get its verdict."""
        ...


@runtime_checkable
class Moving(Protocol):
    """What may score the same completion differently later. Without this, what is `Stateful` and not `Composite` does."""

    @property
    def moves(self) -> bool:
        """Whether it does."""
        ...


@runtime_checkable
class Fitted(Protocol):
    """A feedback that samples of the reference may have to fix first: `Transformed`, with a `ReferenceNormalise`."""

    @property
    def unfitted(self) -> bool:
        """Whether `fit` is still to be called."""
        ...

    def fit(
        self, prompts: Sequence[Prompt], completions: Sequence[Sequence[Completion]], rows: Sequence[Mapping[str, Any]]
    ) -> None:
        """Fix what is not fixed yet."""
        ...


ALONE = threading.Event()
"""Set while the main process alone calls a feedback, and the others wait for its verdict."""


def refuse_alone(name: str) -> None:
    """Refuse a call by the main process alone of what all processes have to call, for it would wait for them for ever.

    Raises:
        PrefoptError: says how to tell that a feedback holds such a part.
    """
    if ALONE.is_set():
        raise PrefoptError(
            f"{name} is called by one process alone, and it shares its work among all: the feedback that calls it must list "
            "it, with a property `parts` that returns the feedbacks that it holds"
        )


SHARING: list[Accelerator] = []
"""The processes that call a feedback together now; empty while one calls it."""


def by_main(accelerator: Accelerator, call: Callable[[], T]) -> T:
    """The result of a call by the main process alone, the same on all.

    Raises:
        PrefoptError: on every process, for the others would wait for ever.
    """
    outcome: list[Any] = [None, ""]
    if accelerator.is_main_process:
        sharing, alone = SHARING[:], ALONE.is_set()
        SHARING.clear()
        ALONE.set()
        try:
            outcome = [call(), ""]
        except PrefoptError as error:
            outcome = [None, str(error)]
        finally:
            SHARING.extend(sharing)
            if not alone:
                ALONE.clear()
    result, error_message = broadcast_object_list(outcome)
    if error_message:
        raise PrefoptError(error_message)
    returned: T = result
    return returned


def by_all(accelerator: Accelerator, call: Callable[[], T]) -> T:
    """The result of a call by all processes, in which what is not `Collective` is called by the main one alone."""
    SHARING.append(accelerator)
    try:
        return call()
    finally:
        SHARING.pop()


def is_collective(feedback: Any) -> bool:
    """Whether all processes have to call it, because a part of it shares its work among them."""
    return any(isinstance(part, Collective) and part.collective for part in parts_of(feedback))


def parts_of(feedback: Any) -> Iterator[Any]:
    """A feedback, its parts, and theirs."""
    yield feedback
    for part in held_by(feedback):
        yield from parts_of(part)


def held_by(feedback: Any) -> Sequence[Any]:
    """The feedbacks that it says it holds, or else those among its attributes, in their lists and mappings, too."""
    if isinstance(feedback, Composite):
        return feedback.parts
    found: list[Any] = []
    for value in getattr(feedback, "__dict__", {}).values():
        several = list(value.values()) if isinstance(value, dict) else value
        for one in several if isinstance(several, list | tuple) else [value]:
            known = callable(one) and isinstance(one, Composite | Collective | Spending)
            if known and not isinstance(one, type) and all(one is not other for other in found):
                found.append(one)
    return found


def is_unfitted(feedback: Any) -> bool:
    """Whether it, or a part of it, is still to be fitted."""
    if isinstance(feedback, Fitted):
        return feedback.unfitted
    return any(map(is_unfitted, held_by(feedback)))


def fit(
    feedback: Any,
    prompts: Sequence[Prompt],
    completions: Sequence[Sequence[Completion]],
    rows: Sequence[Mapping[str, Any]],
) -> None:
    """Fit it, or the parts of it, where that is still to be done."""
    if isinstance(feedback, Fitted):
        if feedback.unfitted:
            feedback.fit(prompts, completions, rows)
    else:
        for part in held_by(feedback):
            fit(part, prompts, completions, rows)


def state_of(feedback: Any) -> dict[str, Any]:
    """The running numbers of a feedback and its parts; {} where there are none."""
    if isinstance(feedback, Stateful):
        return feedback.state_dict()
    parts = held_by(feedback)
    return {"members": [state_of(part) for part in parts]} if parts or isinstance(feedback, Composite) else {}


def restore(feedback: Any, state: dict[str, Any]) -> None:
    """Take up again what `state_of` returned.

    Raises:
        PrefoptError: it is the state of another number of parts.
    """
    if isinstance(feedback, Stateful):
        feedback.load_state_dict(state)
    elif "members" in state:
        name, parts, states = type(feedback).__name__, held_by(feedback), state["members"]
        if len(states) != len(parts):
            raise PrefoptError(f"a state of {len(states)} members for a feedback {name} of {len(parts)}")
        for part, own in zip(parts, states, strict=True):
            restore(part, own)


def run_feedback(
    feedback: Feedback | Any,
    name: str,
    prompts: Sequence[Prompt],
    completions: Sequence[Sequence[Completion]],
    rows: Sequence[Mapping[str, Any]],
    timeout: float | None = None,
) -> Verdict:
    """Call any feedback and check its verdict.

    None and NaN are no verdict: they come back as NaN, never as a number.

    Args:
        feedback: called with the next three.
        name: what messages call it.
        prompts: B of them.
        completions: K texts for each.
        rows: the other columns of each.
        timeout: seconds that it may take; None waits for as long as it takes. What is not back by then goes on in a thread that
            nobody listens to, because Python cannot stop one.

    Raises:
        PrefoptError: it raised something, took too long, or returned something else than B × K finite numbers or a `Verdict` of
            such; says which feedback.
    """

    def verdict() -> Verdict:
        answer = _answer(feedback, name, (prompts, completions, rows), timeout)
        return checked(answer if isinstance(answer, Verdict) else Verdict(as_scores(answer, name)), name, completions)

    return by_main(SHARING[-1], verdict) if SHARING and not is_collective(feedback) else verdict()


def run_statistic(
    function: Any,
    name: str,
    prompts: Sequence[Prompt],
    completions: Sequence[Sequence[Completion]],
    rows: Sequence[Mapping[str, Any]],
    timeout: float | None = None,
) -> float:
    """Call what makes one number of all completions together; None and NaN are no number. The arguments are `run_feedback`'s.

    Raises:
        PrefoptError: it raised something, took too long, or returned something else.
    """
    answer = _answer(function, name, (prompts, completions, rows), timeout)
    try:
        return math.nan if answer is None else float(answer)
    except (TypeError, ValueError, OverflowError, RuntimeError) as error:
        raise PrefoptError(
            f"{name} is over the corpus and must return one number of all samples, not a {type(answer).__name__}: {error}"
        ) from error


def _answer(feedback: Any, name: str, given: Sequence[Any], timeout: float | None) -> Any:
    # Lists of its own, so that a feedback which changes what it is given changes nothing of the run.
    own = [_copied(argument) for argument in given]

    def call() -> Any:
        with users_code(f"the feedback {name}"):
            return feedback(*own)

    try:
        return within(timeout, f"feedback {name}", call)
    except LateError as error:
        raise PrefoptError(
            f"the feedback {name} was not back after {timeout:g} seconds on {len(given[0])} prompts; "
            "make it faster, or give it longer: `timeout`"
        ) from error


def _copied(value: Any) -> Any:
    """Lists and mappings at every depth anew; what they hold is the same."""
    if isinstance(value, Mapping):
        return {key: _copied(one) for key, one in value.items()}
    return [_copied(one) for one in value] if isinstance(value, list) else _copied_tuple(value)


def _copied_tuple(value: Any) -> Any:
    return tuple(_copied(one) for one in value) if type(value) is tuple else value


def as_scores(answer: Any, name: str) -> Tensor:
    """[B, K] of lists of numbers; None is NaN.

    Raises:
        PrefoptError: it is something else; says whose answer.
    """
    if inspect.iscoroutine(answer):
        answer.close()
        raise PrefoptError(
            f"the feedback {name} is `async def`, so a call of it gives a coroutine and no list of numbers: write a plain `def` "
            "that calls asyncio.run(…)"
        )
    if isinstance(answer, Mapping):
        raise PrefoptError(
            f"the feedback {name} returned a mapping ({', '.join(map(str, answer))}), and it must return one number for each "
            f"completion; a metric that returns several names them: `values: [{', '.join(map(str, answer))}]`"
        )
    if isinstance(answer, Iterator):  # a generator runs only now
        with users_code(f"the feedback {name}"):
            answer = list(answer)
    try:
        numbers = [[math.nan if score is None else float(score) for score in row] for row in answer]
        return torch.tensor(numbers)
    except (TypeError, ValueError, OverflowError, RuntimeError) as error:
        raise PrefoptError(
            f"the feedback {name} must return one number for each completion, in a list for each prompt ([[0.5, 1.0], [0.0, 0.2]] "
            f"for two completions of two prompts); it returned {reprlib.repr(answer)}: {error}"
        ) from error
