"""Environments in TRL's form: the classes of `GRPOTrainer(environment_factory=…)`, as OpenEnv, Harbor and OpenReward ship them."""

import asyncio
import inspect
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from transformers.utils import get_json_schema

from prefopt.environments.calls import Call, calls_in
from prefopt.support.errors import PrefoptError
from prefopt.support.plugins import load_object
from prefopt.types import Turn


@dataclass
class TRLEnvironment:
    """`reset(**row) -> str | None`, tools by its other public methods, and perhaps `get_reward() -> float`.

    The policy reads results and errors in TRL's words, and what is no call to TRL, such as one that cannot be parsed, is the answer
    here, too, so the same actions make the same episode (TRL 1.16). Two things differ: a turn that was cut calls nothing, which in
    TRL it may, and what `reset` returns is a message of the user's own, where TRL appends it to the last one.

    The reward is what TRL sums, once the episode is over: `get_reward()` and the reward functions, which are called with `prompts`,
    `completions`, `environments` and the row's columns, each a list of one.

    Attributes:
        factory: a class or function, by path or as it is, called without arguments.
        rewards: reward functions in TRL's form, likewise.
        tokenizer: the policy's, which a run gives; it reads the calls, where it has a `response_template`.

    Raises:
        PrefoptError: what the factory makes has no `reset`, or nothing gives a reward.
    """

    factory: Any
    rewards: Any = ()
    tokenizer: Any = None

    logs = ("calls", "calls_failed")

    def __post_init__(self) -> None:
        given = self.rewards if isinstance(self.rewards, list | tuple) else [self.rewards]
        self._functions = [_loaded(function) for function in given]
        self._env = _loaded(self.factory)()
        names = [name for name, _ in inspect.getmembers(type(self._env), inspect.isfunction)]
        if "reset" not in names:
            raise PrefoptError(f"{type(self._env).__qualname__} has no method reset, which TRL's environments have")
        if not (self._functions or "get_reward" in names):
            raise PrefoptError(
                f"nothing rewards an episode: {type(self._env).__qualname__} has no get_reward, and there are no `rewards`"
            )
        own = ("reset", "get_reward")
        self._methods = {name: getattr(self._env, name) for name in names if name not in own and name[0] != "_"}
        self.tools: Sequence[Mapping[str, Any]] = [get_json_schema(method) for method in self._methods.values()]
        self._loop: Any = None

    def reset(self, row: Mapping[str, Any], seed: int) -> str | None:
        """Begin; TRL's environments know no seed, and draw from the global random numbers, if at all."""
        self._row, self._completion = dict(row), list[dict[str, Any]]()
        opening: str | None = self._env.reset(**self._row)
        return opening

    def step(self, text: str, *, truncated: bool) -> Turn:
        """Call what the policy calls, or end with its answer."""
        read = [] if truncated else calls_in(text, self.tokenizer, self.tools)
        calls = [call for call in read if isinstance(call, Call)]
        if not calls or len(calls) < len(read):
            self._completion.append({"role": "assistant", "content": text})
            return Turn(reward=self._reward(), done=True, info={"calls": 0.0, "calls_failed": 0.0})
        functions = [{"type": "function", "function": call._asdict()} for call in calls]
        self._completion.append({"role": "assistant", "content": text, "tool_calls": functions})
        answers = [self._call(call) for call in calls]
        results = [
            {"role": "tool", "name": call.name, "content": content}
            for call, (content, _) in zip(calls, answers, strict=True)
        ]
        self._completion += results
        failed = sum(failed for _, failed in answers)
        return Turn(results, info={"calls": float(len(calls)), "calls_failed": float(failed)})

    def end(self) -> float:
        """The reward of an episode that ran out of turns or tokens."""
        return self._reward()

    def close(self) -> None:
        """Release what async methods used."""
        if self._loop is not None:
            self._loop.close()
            self._loop = None

    def _call(self, call: Call) -> tuple[Any, bool]:
        try:
            if call.name not in self._methods:
                raise ValueError(f"Tool {call.name} not found.")
            value = self._now(self._methods[call.name](**call.arguments))
        except Exception as error:
            return str({"error": str(error)}), True
        return value if isinstance(value, list) else str(value), False

    def _reward(self) -> float:
        own = [self._env.get_reward()] if hasattr(self._env, "get_reward") else []
        columns = {name: [value] for name, value in self._row.items() if name != "prompt"}
        given = {"prompts": [self._row.get("prompt")], "completions": [self._completion], "environments": [self._env]}
        rewards = [self._now(reward) for reward in own]
        rewards += [self._now(function(**given, **columns))[0] for function in self._functions]
        return math.fsum(float(reward) for reward in rewards if reward is not None)

    def _now(self, value: Any) -> Any:
        if not inspect.iscoroutine(value):
            return value
        self._loop = self._loop or asyncio.new_event_loop()
        return self._loop.run_until_complete(value)


def _loaded(target: Any) -> Any:
    return load_object(target) if isinstance(target, str) else target
