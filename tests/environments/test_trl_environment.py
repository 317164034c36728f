"""Environments in TRL's form behave as in TRL's own loop: its results, its errors, its rewards."""

import json
from typing import Any

import pytest

from prefopt import PrefoptError
from prefopt.environments import TRLEnvironment


class Shop:
    """An environment of the kind that GRPOTrainer takes."""

    def reset(self, *, budget: int = 0, **row: Any) -> str | None:
        self.budget, self.basket = budget, []
        return f" You have {budget}." if budget else None

    def buy(self, item: str, price: int) -> dict[str, Any]:
        """Buy something.

        Args:
            item: What.
            price: At which price.
        """
        if price > self.budget:
            raise ValueError("too dear")
        self.budget -= price
        self.basket.append(item)
        return {"left": self.budget}

    async def ask(self, item: str) -> str:
        """Ask for a price.

        Args:
            item: Of what.
        """
        return f"{item} costs {len(item)}"

    def get_reward(self) -> float:
        return float(len(self.basket))

    def _secret(self) -> None: ...


class Silent:
    def reset(self, **row: Any) -> None: ...

    def look(self) -> str:
        """Look."""
        return "nothing"


ROW = {"prompt": [{"role": "user", "content": "Buy."}], "budget": 10, "environment": "shop"}


def call(name: str, **arguments: Any) -> str:
    return f"<tool_call>{json.dumps({'name': name, 'arguments': arguments})}</tool_call>"


def begun(**fields: Any) -> TRLEnvironment:
    env = TRLEnvironment(Shop, **fields)
    assert env.reset(ROW, 0) == " You have 10."
    return env


def test_an_episode_calls_methods_and_ends_with_the_environments_reward() -> None:
    env = begun()
    assert [tool["function"]["name"] for tool in env.tools] == ["ask", "buy"]  # in TRL's order
    turn = env.step(call("ask", item="tea") + call("buy", item="tea", price=3), truncated=False)
    assert turn.text == [
        {"role": "tool", "name": "ask", "content": "tea costs 3"},
        {"role": "tool", "name": "buy", "content": "{'left': 7}"},  # as TRL writes it
    ]
    assert (turn.reward, turn.done, turn.info) == (0.0, False, {"calls": 2.0, "calls_failed": 0.0})
    last = env.step("I have tea.", truncated=False)
    assert (last.reward, last.done) == (1.0, True)
    env.close()


@pytest.mark.parametrize(
    ("text", "content"),
    [
        (call("buy", item="car", price=99), "{'error': 'too dear'}"),
        (call("sell", item="car"), "{'error': 'Tool sell not found.'}"),
        (call("_secret"), "{'error': 'Tool _secret not found.'}"),
        (call("get_reward"), "{'error': 'Tool get_reward not found.'}"),
        (call("buy", item="tea"), "missing 1 required positional argument: 'price'"),
    ],
)
def test_errors_are_trls(text: str, content: str) -> None:
    turn = begun().step(text, truncated=False)
    assert content in turn.text[0]["content"] and turn.info["calls_failed"] == 1


@pytest.mark.parametrize(
    ("text", "truncated"),
    [
        (call("buy", item="a", price=1) + "<tool_call>buy tea</tool_call>", False),
        (call("buy", item="a", price=1), True),
    ],
)
def test_what_is_no_call_to_trl_or_was_cut_is_the_end(text: str, truncated: bool) -> None:
    turn = begun().step(text, truncated=truncated)
    assert (turn.done, turn.reward, turn.info["calls"]) == (True, 0.0, 0.0)


def test_reward_functions_are_called_as_trl_calls_them() -> None:
    seen: dict[str, Any] = {}

    def left(environments: Any, **given: Any) -> list[float]:
        seen.update(given)
        return [env.budget for env in environments]

    async def nothing(completions: Any, **given: Any) -> list[None]:
        return [None for _ in completions]

    env = begun(rewards=[left, nothing])
    env.step(call("buy", item="tea", price=3), truncated=False)
    assert env.step("done", truncated=False).reward == 1.0 + 7.0
    assert seen["budget"] == [10] and seen["prompts"] == [ROW["prompt"]]
    assert [message["role"] for message in seen["completions"][0]] == ["assistant", "tool", "assistant"]
    assert seen["completions"][0][0]["tool_calls"][0]["function"] == {
        "name": "buy",
        "arguments": {"item": "tea", "price": 3},
    }
    env.close()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"factory": Silent}, "nothing rewards an episode: Silent has no get_reward, and there are no `rewards`"),
        ({"factory": object}, "object has no method reset"),
        ({"factory": "nowhere.py:Shop"}, r"no file nowhere\.py"),
    ],
)
def test_what_trl_would_not_take_is_refused(fields: Any, message: str) -> None:
    with pytest.raises(PrefoptError, match=message):
        TRLEnvironment(**fields)
