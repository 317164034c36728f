"""Functions as tools: what a policy is told of them, and whether arguments fit."""

import functools
from typing import Any

import _tools
import pytest

from prefopt import PrefoptError
from prefopt.environments.functions import ArgumentsError, Function, tools_of


def test_a_policy_is_told_names_types_and_what_they_mean() -> None:
    schema = Function(_tools.multiply).schema["function"]
    assert schema["name"] == "multiply" and schema["description"] == "Multiply two whole numbers."
    assert schema["parameters"]["required"] == ["a"]
    assert schema["parameters"]["properties"]["how"]["enum"] == ["exact", "rounded"]


def test_the_tools_of_a_class_are_its_public_methods() -> None:
    class More(_tools.Counter):
        def double(self) -> None:
            """Double it."""

    assert [tool.name for tool in tools_of(More)] == ["add", "wait", "double"]
    assert Function(_tools.Counter.add).schema["function"]["parameters"]["required"] == ["number"]
    assert Function(_tools.Counter.add).checked({"number": 3}) == {"number": 3}


@pytest.mark.parametrize(
    ("function", "given", "taken"),
    [
        (_tools.multiply, {"a": 3}, {"a": 3}),
        (_tools.multiply, {"a": "3", "b": 4.0, "how": "rounded"}, {"a": 3, "b": 4, "how": "rounded"}),
        (_tools.total, {"numbers": "[1, 2.5]"}, {"numbers": [1, 2.5]}),  # as tags write a list
        (_tools.total, {"numbers": [1], "note": "null"}, {"numbers": [1], "note": "null"}),
        (_tools.total, {"numbers": (), "note": None}, {"numbers": [], "note": None}),
    ],
)
def test_arguments_are_brought_to_their_types(function: Any, given: Any, taken: Any) -> None:
    assert Function(function).checked(given) == taken


@pytest.mark.parametrize(
    ("function", "given", "message"),
    [
        (_tools.multiply, {}, "multiply needs the argument 'a'."),
        (_tools.multiply, {"a": "three"}, "multiply: the argument 'a' must be a valid integer, got 'three'."),
        (_tools.multiply, {"a": 1, "how": "roundd"}, "'how' must be 'exact' or 'rounded', got 'roundd'"),
        (_tools.multiply, {"a": 1, "bb": 2}, r"no argument 'bb'. Did you mean 'b'\?"),
        (_tools.multiply, {"x": 1}, "multiply has no argument 'x'.* multiply needs the argument 'a'"),
        (_tools.total, {"numbers": "1, 2"}, "'numbers' must be a valid list, got '1, 2'"),
        (_tools.total, {"numbers": "9" * 10_000}, "got '9{90,110}"),
    ],
)
def test_arguments_that_do_not_fit_are_named(function: Any, given: Any, message: str) -> None:
    with pytest.raises(ArgumentsError, match=message) as caught:
        Function(function).checked(given)
    assert len(str(caught.value)) < 300


def bare(a: int) -> int:
    return a


def untyped(a):  # type: ignore[no-untyped-def]
    """Say.

    Args:
        a: What.
    """


def unsaid(a: int, b: int) -> None:
    """Say.

    Args:
        a: What.
    """


def several(*a: int) -> None:
    """Say.

    Args:
        a: What.
    """


async def later() -> None:
    """Wait."""


class Empty:
    def reset(self, row: Any, seed: int) -> None: ...


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (bare, "the tool bare cannot be described to a policy: .* has no docstring.* It needs a docstring"),
        (untyped, "Argument a is missing a type hint.*and for each parameter a type hint"),
        (unsaid, "no description for the argument 'b'"),
        (several, r"the tool several has the parameter \*a: int: arguments are given by name"),
        (later, "the tool later is `async def`: write a plain `def`"),
        (functools.partial(bare, 1), "is no tool: a tool is a function, or a class"),
        (Empty, "Empty has no tools: they are its public methods, other than reset, reward, close"),
    ],
)
def test_what_is_no_tool_says_what_is_missing(target: Any, message: str) -> None:
    with pytest.raises(PrefoptError, match=message):
        list(tools_of(target))
