"""Functions as an environment: calls come back as results that the policy reads, and an answer ends the episode."""

import copy
import os
from typing import Any

import _tools
import pytest
from _callers import call, calling_model
from rich.console import Console

import prefopt
from prefopt import PrefoptError, recipe
from prefopt.environments import Limits, Tools, check_environment, environment_factory
from prefopt.environments.tools import KINDS

ROW = {"prompt": [{"role": "user", "content": "What is 6 times 7?"}], "answer": "42"}
QUICK = Limits(seconds=0.3, megabytes=300)


def right(row: Any, text: str, messages: Any) -> float:
    return float(row["answer"] in text and row["ended"])


def begun(functions: Any, row: Any = ROW, **fields: Any) -> Tools:
    tools = Tools(functions, **fields)
    tools.reset(row, 5)
    return tools


def result(tools: Tools, text: str) -> Any:
    """The one result of a turn."""
    (message,) = tools.step(text, truncated=False).text
    return message["content"]


@pytest.mark.parametrize("limits", [None, QUICK])
def test_a_policy_calls_reads_and_answers(limits: Any) -> None:
    tools = begun([_tools.multiply, _tools.total], reward=right, limits=limits)
    assert [tool["function"]["name"] for tool in tools.tools] == ["multiply", "total"]
    turn = tools.step("I need " + call("multiply", a=6, b="7") + call("total", numbers=[1, 2]), truncated=False)
    assert turn.text == [
        {"role": "tool", "name": "multiply", "content": "42"},
        {"role": "tool", "name": "total", "content": '{"total": 3.0, "note": null}'},
    ]
    assert (turn.done, turn.reward, turn.info["calls"]) == (False, 0.0, 2)
    last = tools.step("It is 42.", truncated=False)
    assert (last.done, last.reward, last.text, sum(last.info.values())) == (True, 1.0, "", 0)
    assert set(last.info) == set(turn.info) == {"calls", "results_cut", *(f"calls_{kind}" for kind in KINDS)}


def test_a_turn_that_was_cut_calls_nothing() -> None:
    tools = begun(_tools.Counter, row={"start": 1})
    turn = tools.step(call("add", number=5), truncated=True)
    assert (turn.done, turn.info["calls"]) == (True, 0)
    assert turn.reward == 1 + 0 + 0.1  # the counter stands where it began, the turn did not end, one message


@pytest.mark.parametrize(
    ("text", "kind", "message"),
    [
        ("<tool_call>multiply</tool_call>", "unparsed", "error: this call cannot be read: Expecting value"),
        (
            call("multply", a=1),
            "unknown",
            "no tool 'multply'. Did you mean 'multiply'? There are: multiply, misbehave.",
        ),
        (call("multiply", b=1), "arguments", "error: multiply needs the argument 'a'."),
        (call("misbehave", how="raise"), "raised", "error: ValueError: no such thing"),
        (call("misbehave", how="exit"), "raised", "error: SystemExit: 3"),
    ],
)
@pytest.mark.parametrize("limits", [None, QUICK])
def test_what_goes_wrong_is_a_result_and_is_counted(text: str, kind: str, message: str, limits: Any) -> None:
    turn = begun([_tools.multiply, _tools.misbehave], limits=limits).step(text, truncated=False)
    assert message in turn.text[0]["content"] and not turn.done
    assert {name for name, number in turn.info.items() if number} == {"calls", f"calls_{kind}"}


@pytest.mark.parametrize(
    ("how", "size", "kind", "message"),
    [
        ("hang", 0, "time", "error: misbehave was not back after the 0.3 seconds that a turn has, and was stopped"),
        ("memory", 2000, "memory", "error: misbehave took more than 300 megabytes, and was stopped"),
        ("die", 0, "died", "error: misbehave ended its process"),
    ],
)
def test_what_a_child_ends_of_is_a_result_and_is_counted(how: str, size: int, kind: str, message: str) -> None:
    turn = begun(_tools.misbehave, limits=QUICK).step(call("misbehave", how=how, size=size), truncated=False)
    assert turn.text[0]["content"].startswith(message)
    assert {name for name, number in turn.info.items() if number} == {"calls", f"calls_{kind}"}


@pytest.mark.parametrize("limits", [None, QUICK])
def test_long_results_are_cut_and_say_so(limits: Any) -> None:
    tools = begun(_tools.misbehave, characters=100, limits=limits)
    turn = tools.step(call("misbehave", how="text", size=10_000_000), truncated=False)
    assert turn.text[0]["content"] == "y" * 100 + "\n[cut: the first 100 of 10,000,000 characters]"
    assert turn.info["results_cut"] == 1
    assert result(tools, call("misbehave", how="half", size=2)) == "??"  # no tokenizer takes half a character


def test_a_turn_has_its_time_together() -> None:
    tools = begun([_tools.misbehave], limits=QUICK)
    turn = tools.step(call("misbehave", how="hang") * 5, truncated=False)
    assert turn.info["calls_time"] == 5  # of which four were not called any more


@pytest.mark.parametrize("limits", [None, QUICK])
def test_a_class_has_its_state_for_each_episode(limits: Any) -> None:
    one, other = Tools(_tools.Counter, limits=limits), Tools(_tools.Counter, limits=limits)
    assert one.reset({"start": 1}, 0) == "It begins at 1." and other.reset({"start": 10}, 0) == "It begins at 10."
    assert [result(one, call("add", number=2)), result(one, call("add", number=2))] == ["3", "5"]
    assert result(other, call("add", number=2)) == "12"
    assert one.step("done", truncated=False).reward == 5 + 100 + 0.5
    assert one.reset({"start": 2}, 0) == "It begins at 2." and result(one, call("add", number=2)) == "4"
    closed = _tools.Counter.closed
    one.close()
    other.close()
    assert _tools.Counter.closed == closed + 2 * (limits is None)


def test_an_object_that_is_stopped_begins_anew() -> None:
    tools = begun(_tools.Counter, row={"start": 1}, limits=QUICK)
    result(tools, call("add", number=5))
    assert "was stopped" in result(tools, call("wait"))
    assert result(tools, call("add", number=5)) == "6"
    tools.close()


def test_code_always_runs_in_a_child() -> None:
    tools = begun([_tools.multiply, "Python"])
    assert [box.limits for box in tools.boxes] == [None, Limits()]
    assert result(tools, call("python", code="import os; n = 6\nos.getpid()")) != str(os.getpid())
    assert result(tools, call("python", code="n * 7")) == "42"
    failed = tools.step(call("python", code="n / 0"), truncated=False)
    assert (
        failed.text[0]["content"].endswith("ZeroDivisionError: division by zero") and failed.info["calls_raised"] == 1
    )
    tools.close()


def test_a_plain_prompt_reads_tags() -> None:
    tools = begun(_tools.multiply, row={"prompt": "6 times 7?"})
    assert tools.stop == ("</tool_call>",) and tools.tools == []  # which the prompt says itself
    turn = tools.step(call("multiply", a=6, b=7).removesuffix("</tool_call>"), truncated=False)
    assert turn.text == "\n<tool_response>\n42\n</tool_response>\n"
    tools.reset(ROW, 0)
    assert tools.stop == () and len(tools.tools) == 1


def test_a_reward_sees_the_row_the_answer_and_all_turns() -> None:
    seen: dict[str, Any] = {}

    def reward(row: Any, text: str, messages: Any) -> bool:
        seen.update(row=row, text=text, messages=messages)
        return True

    tools = begun(_tools.multiply, reward=reward)
    tools.step(call("multiply", a=6), truncated=False)
    assert tools.step("12", truncated=False).reward == 1.0
    assert seen["row"] == {**ROW, "ended": True} and seen["text"] == "12"
    assert [message["role"] for message in seen["messages"]] == ["assistant", "tool", "assistant"]


def test_an_episode_without_an_answer_has_a_reward_too() -> None:
    seen: list[Any] = []
    tools = begun(_tools.multiply, reward=lambda **given: seen.append(given) or 0.5)
    tools.step(call("multiply", a=21), truncated=False)
    assert tools.end() == 0.5 and (seen[0]["text"], seen[0]["row"]["ended"]) == ("", False)
    assert set(tools.logs) == {"calls", "results_cut", *(f"calls_{kind}" for kind in KINDS)}


def test_a_recipe_names_tools_by_path(tmp_path: Any) -> None:
    (tmp_path / "mine.py").write_text(
        'def double(a: int) -> int:\n    """Double.\n\n    Args:\n        a: What.\n    """\n    return 2 * a\n\n\n'
        "def reward(row, text, messages):\n    return float(text == row['answer'])\n"
    )
    spec = recipe.Environment(
        name="prefopt.environments:Tools",
        functions=[f"{tmp_path}/mine.py:double"],
        reward=f"{tmp_path}/mine.py:reward",
        limits={"seconds": 5},
    )
    tools = environment_factory(spec)()
    tools.reset(ROW, 0)
    assert tools.step(call("double", a=21), truncated=False).text[0]["content"] == "42"  # type: ignore[index, call-overload]
    assert tools.step("42", truncated=False).reward == 1.0
    assert check_environment(environment_factory(spec)(), ROW).done


def test_every_completion_has_tools_of_its_own() -> None:
    made = begun(_tools.Counter, row={"start": 1}, tokenizer=object())
    own = copy.deepcopy(made)
    own.reset({"start": 5}, 0)
    assert own.tokenizer is made.tokenizer
    assert result(made, call("add", number=1)) == "2" and result(own, call("add", number=1)) == "6"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"functions": []}, "must be one at least; these are none"),
        ({"functions": [_tools.multiply, _tools.multiply]}, "names of their own.* multiply, multiply"),
        ({"functions": [lambda a: a]}, "cannot be described to a policy"),
        ({"functions": "nowhere.py:f"}, r"no file nowhere\.py"),
        ({"functions": "Pyton"}, "unknown tool 'Pyton'. Did you mean 'Python'"),
        (
            {"functions": _tools.Counter, "reward": right},
            r"one reward, and these say it: Counter\.reward and the field",
        ),
        ({"functions": _tools.multiply, "reward": 3}, "the reward 3 is no function"),
    ],
)
def test_what_cannot_be_is_refused_when_it_is_made(fields: Any, message: str) -> None:
    with pytest.raises(PrefoptError, match=message):
        Tools(**fields)


@pytest.mark.parametrize("reward", [lambda **given: None, lambda **given: float("nan"), lambda **given: "high"])
def test_a_reward_is_a_finite_number(reward: Any) -> None:
    with pytest.raises(PrefoptError, match="the reward of an episode with tools is a finite number, and was"):
        begun(_tools.multiply, reward=reward).step("42", truncated=False)


def test_what_a_begin_raises_names_it() -> None:
    with pytest.raises(PrefoptError, match=r"Counter\.reset: error: KeyError: 'start'"):
        begun(_tools.Counter, row={}, limits=QUICK)
    with pytest.raises(KeyError):
        begun(_tools.Counter, row={})


MISDEEDS = [call("misbehave", how=how, size=size) for how, size in [
    ("raise", 0), ("hang", 0), ("die", 0), ("memory", 2000), ("print", 10_000_000), ("text", 10_000_000),
]]  # fmt: skip


@pytest.mark.slow
def test_whatever_tools_do_a_run_goes_on_and_counts_it(tmp_path: Any) -> None:
    model = calling_model(tmp_path / "model", [*MISDEEDS, call("misbehave"), call("behave"), "42"], 0)
    acting = {
        "name": "Tools",
        "functions": [_tools.misbehave, _tools.total],
        "reward": right,
        "limits": {"seconds": 0.3, "megabytes": 300},
        "characters": 50,
        "max_turns": 4,
        "max_tokens": 1000,
    }
    prompts = [{"prompt": [{"role": "user", "content": "Go" + "." * n}], "answer": "42"} for n in range(16)]
    settings = {
        "policy": {"model": model},
        "source": {
            "data": prompts,
            "split": [1, 0, 0],
            "max_prompt_tokens": 2000,
            "rollouts": {"completions": 2, "sampling": {"max_tokens": 6}, "environment": acting},
        },
        "objective": "RLOO",
        "train": {"steps": 2, "batch_size": 8, "lr": 1e-3, "threads": 1},
        "evaluate": {"prompts": 0},
        "track": {"folder": str(tmp_path / "runs")},
    }
    history = prefopt.run(settings, console=Console(quiet=True)).metrics
    counted = {name: history[f"environment/{name}"].sum() for name in (*Tools.logs, "failed", "timed_out")}
    assert all(counted[f"calls_{kind}"] > 0 for kind in KINDS if kind != "unparsed") and counted["results_cut"] > 0, (
        counted
    )
    assert counted["failed"] == counted["timed_out"] == 0 and history["rollouts/reward"].notna().sum() == 2
