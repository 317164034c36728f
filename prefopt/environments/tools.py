"""Python functions as tools: an environment whose policy calls them, reads what they return, and then answers."""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from prefopt.environments.calls import Call, Unparsed, calls_in
from prefopt.environments.child import Limits, Reply
from prefopt.environments.functions import ArgumentsError
from prefopt.environments.in_child import Python
from prefopt.environments.toolbox import Toolbox
from prefopt.support.errors import PrefoptError, nearest
from prefopt.support.plugins import find, load_object
from prefopt.types import Message, Turn

KINDS = ("unparsed", "unknown", "arguments", "raised", "time", "memory", "died")
"""What can be wrong with a call; counted in `Turn.info` as `calls_KIND`."""


@dataclass
class Tools:
    """Tools that a policy calls as often as it likes; a turn without a call is its answer, and the end.

    A tool is a function with a docstring and a type hint and a line of `Args:` for each parameter. A class is one object for each
    episode, made without arguments, whose public methods are tools; its `reset(row, seed)`, `reward(row, text, messages)` and
    `close()`, where it has them, begin, score and end it, and what `reset` returns follows the prompt.

        def multiply(a: int, b: int) -> int:
            \"\"\"Multiply two numbers.

            Args:
                a: The first.
                b: The second.
            \"\"\"
            return a * b

        def reward(row, text, messages):
            return float(row["answer"] in text)

        source: {rollouts: {environment: {name: Tools, functions: [tools.py:multiply], reward: "tools.py:reward"}}}

    The policy learns of the tools from its chat template; a prompt that is a plain text must say itself what they are, and results
    follow in `<tool_response>`. How calls are written is the tokenizer's affair, where it has a `response_template`; otherwise see
    `calls_in`. What goes wrong with a call is its result, for the policy to read, and is counted: no such tool, other arguments,
    an exception, too much time or memory.

    The numbers of a turn are `calls`, `calls_KIND` for each of `KINDS`, and `results_cut`: `logs` has them all.

    Attributes:
        functions: functions and classes, by path or as they are; `Python` is there by its name.
        reward: (row, text, messages) → the reward of the episode, where no class has one. The text is the answer, and `ended` in
            the row is False where it was cut; it is "" and False where turns or tokens ran out before there was an answer.
            `messages` are all turns and results. None gives 0.
        limits: run the tools in a child process that has these; null runs them in this one. Classes that run code which the policy
            writes, such as `Python`, always have a child. A child is no security sandbox.
        characters: most of a result; what is longer is cut, which the policy is told.
        tokenizer: the policy's, which a run gives.

    Raises:
        PrefoptError: what is no tool, what cannot be described to a policy, two tools of one name, or two rewards.
    """

    functions: Any
    reward: Any = None
    limits: Limits | None = None
    characters: int = 8000
    tokenizer: Any = None

    logs = ("calls", *(f"calls_{kind}" for kind in KINDS), "results_cut")

    def __post_init__(self) -> None:
        if self.characters < 1:
            raise ValueError(f"characters must be at least 1, got {self.characters}")
        if isinstance(self.limits, Mapping):
            self.limits = Limits(**self.limits)
        given = self.functions if isinstance(self.functions, list | tuple) else [self.functions]
        self.boxes = [Toolbox(_found(target), self.limits) for target in given]
        names = [name for box in self.boxes for name in box.functions]
        if not names or len(set(names)) < len(names):
            raise PrefoptError(
                f"tools need names of their own, and there must be one at least; these are {', '.join(names) or 'none'}"
            )
        self._box = {name: box for box in self.boxes for name in box.functions}
        self.stop: Sequence[str] = ()
        self._plain = False
        _ = self._score

    def __deepcopy__(self, memo: Any) -> "Tools":
        return replace(self)  # with the same tokenizer, and objects of its own

    @property
    def tools(self) -> list[Mapping[str, Any]]:
        """JSON schemas, as chat templates take them; none for a prompt that is a plain text."""
        return [] if self._plain else [box.functions[name].schema for name, box in self._box.items()]

    @cached_property
    def _score(self) -> Callable[..., Any]:
        own = [box for box in self.boxes if hasattr(box.target, "reward")]
        if len(own) + (self.reward is not None) > 1:
            names = [f"{box.target.__qualname__}.reward" for box in own] + ["the field `reward`"] * (
                self.reward is not None
            )
            raise PrefoptError(f"an episode has one reward, and these say it: {' and '.join(names)}")
        if own:
            return lambda **given: own[0].of_object("reward", **given)
        function = load_object(self.reward) if isinstance(self.reward, str) else self.reward
        if function is not None and not callable(function):
            raise PrefoptError(f"the reward {function!r} is no function")
        return function or (lambda **given: 0.0)

    def reset(self, row: Mapping[str, Any], seed: int) -> Any:
        """Begin with new objects; what their `reset` says follows the prompt."""
        self._row = dict(row)
        self._messages: list[Message] = []
        self._plain = isinstance(row.get("prompt"), str)
        self.stop = ("</tool_call>",) if self._plain else ()
        openings = [opening for box in self.boxes if (opening := box.begin(row, seed))]
        if len(openings) > 1 and not all(isinstance(opening, str) for opening in openings):
            raise PrefoptError("several of the classes with tools begin with messages: let one of them")
        return (openings[0] if len(openings) == 1 else "\n".join(openings)) if openings else None

    def step(self, text: str, *, truncated: bool) -> Turn:
        """Call what the policy calls, or end with its answer; a turn that was cut calls nothing, and is the last."""
        calls = [] if truncated else calls_in(text, self.tokenizer)
        self._messages.append({"role": "assistant", "content": text})
        if not calls:
            return Turn(reward=self._rewarded(text, ended=not truncated), done=True, info=self._counts([]))
        began = time.monotonic()
        replies = [self._reply(call, began) for call in calls]
        messages = [
            {"role": "tool", **({"name": name} if name else {}), "content": self._shown(name, reply)}
            for name, reply in replies
        ]
        self._messages += messages
        return Turn(_tagged(messages) if self._plain else messages, info=self._counts([reply for _, reply in replies]))

    def end(self) -> float:
        """The reward of an episode without an answer."""
        return self._rewarded("", ended=False)

    def close(self) -> None:
        """End the episode's objects and processes."""
        for box in self.boxes:
            box.close()

    def _reply(self, call: Call | Unparsed, began: float) -> tuple[str, Reply]:
        if isinstance(call, Unparsed):
            return "", Reply(f"error: this call cannot be read: {call.reason}", kind="unparsed")
        box = self._box.get(call.name)
        if box is None:
            known = f"{nearest(call.name, self._box)} There are: {', '.join(self._box)}."
            return call.name, Reply(f"error: there is no tool {call.name[:100]!r}.{known}", kind="unknown")
        try:
            arguments = box.functions[call.name].checked(call.arguments)
        except ArgumentsError as error:
            return call.name, Reply(f"error: {error}", kind="arguments")
        end = began + (box.limits.seconds if box.limits else 0)
        return call.name, box.call(call.name, arguments, self.characters, end)

    def _shown(self, name: str, reply: Reply) -> str:
        """What the policy reads of a reply."""
        limits = self._box[name].limits if name in self._box else None
        if limits is not None and reply.kind in ("time", "memory", "died"):
            why = {
                "time": f"was not back after the {limits.seconds:g} seconds that a turn has",
                "memory": f"took more than {limits.megabytes} megabytes",
                "died": "ended its process, or answered what cannot be read",
            }[reply.kind]
            return f"error: {name} {why}, and was stopped"
        if reply.kind == "memory":
            return f"error: {name} took more memory than there is"
        if self._is_cut(reply):
            return f"{reply.value}\n[cut: the first {self.characters:,} of {reply.size:,} characters]"
        return str(reply.value)

    def _is_cut(self, reply: Reply) -> bool:
        return reply.size > self.characters

    def _counts(self, replies: Sequence[Reply]) -> dict[str, float]:
        kinds = [reply.kind for reply in replies]
        counts = {f"calls_{kind}": float(kinds.count(kind)) for kind in KINDS}
        return {"calls": float(len(kinds)), **counts, "results_cut": float(sum(map(self._is_cut, replies)))}

    def _rewarded(self, text: str, *, ended: bool) -> float:
        reward = self._score(row={**self._row, "ended": ended}, text=text, messages=list(self._messages))
        try:
            number = float(reward)
        except (TypeError, ValueError):
            number = math.nan
        if not math.isfinite(number):
            raise PrefoptError(f"the reward of an episode with tools is a finite number, and was {reward!r}")
        return number


def _found(target: Any) -> Any:
    return find(target, "tool", known={"Python": Python}) if isinstance(target, str) else target


def _tagged(messages: Sequence[Message]) -> str:
    """Results in a plain text, as the field writes them."""
    return "".join(f"\n<tool_response>\n{message['content']}\n</tool_response>\n" for message in messages)
