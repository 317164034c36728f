"""Python functions as tools: what a policy is told of one, and whether the arguments of a call fit it."""

import inspect
import typing
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

from pydantic import TypeAdapter, ValidationError
from transformers.utils import get_json_schema
from transformers.utils.chat_template_utils import DocstringParsingException, TypeHintParsingException

from prefopt.support.errors import PrefoptError, nearest

OWN = ("reset", "reward", "close")
"""Methods of an object with tools that are no tools: they begin its episode, score it and end it."""


class ArgumentsError(Exception):
    """Arguments that a tool does not take; the message says which and why, for the policy to read."""


@dataclass(frozen=True)
class Function:
    """A function as a tool.

    Attributes:
        function: with a type hint and a line of the docstring's `Args:` for each parameter. Of a method, the class's own.

    Raises:
        PrefoptError: what is missing, where.
    """

    function: Callable[..., Any]

    def __post_init__(self) -> None:
        name = getattr(self.function, "__qualname__", repr(self.function))
        if not inspect.isfunction(self.function):
            raise PrefoptError(f"{name} is no tool: a tool is a function, or a class whose public methods are tools")
        if inspect.iscoroutinefunction(self.function):
            raise PrefoptError(f"the tool {name} is `async def`: write a plain `def` that calls asyncio.run(…)")
        for parameter in self.parameters.values():
            if parameter.kind not in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
                raise PrefoptError(
                    f"the tool {name} has the parameter {parameter}: arguments are given by name, each to one of its own"
                )
        try:
            _ = self.schema, self._types
        except (DocstringParsingException, TypeHintParsingException, NameError) as error:
            raise PrefoptError(
                f"the tool {name} cannot be described to a policy: {error}. It needs a docstring, and for each parameter "
                "a type hint and a line below `Args:`"
            ) from error

    @property
    def name(self) -> str:
        """What a policy calls it."""
        return self.function.__name__

    @cached_property
    def parameters(self) -> Mapping[str, inspect.Parameter]:
        """By name, `self` left out."""
        parameters = dict(inspect.signature(self.function).parameters)
        first = next(iter(parameters.values()), None)
        if first is not None and first.name in ("self", "cls") and first.annotation is first.empty:
            del parameters[first.name]
        return parameters

    @cached_property
    def schema(self) -> dict[str, Any]:
        """The JSON schema, as chat templates take it."""
        schema: dict[str, Any] = get_json_schema(self.function)
        return schema

    @cached_property
    def _types(self) -> dict[str, TypeAdapter[Any]]:
        hints = typing.get_type_hints(self.function, include_extras=True)
        return {name: TypeAdapter(hints[name]) for name in self.parameters}

    def checked(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """The arguments of a call, brought to their types; a text that says a number, a list or null is taken as one where it fits.

        Raises:
            ArgumentsError: one that there is none of, one that is missing, one of another type; says all of them.
        """
        wrong = [
            f"{self.name} has no argument {name!r}.{nearest(name, self.parameters)}"
            for name in arguments
            if name not in self.parameters
        ]
        checked = {}
        for name, parameter in self.parameters.items():
            if name not in arguments:
                if parameter.default is parameter.empty:
                    wrong.append(f"{self.name} needs the argument {name!r}.")
                continue
            try:
                checked[name] = _typed(self._types[name], arguments[name])
            except ValidationError as error:
                said = error.errors()[0]["msg"].replace("Input should", "must").partition(", unable to")[0]
                wrong.append(f"{self.name}: the argument {name!r} {said}, got {arguments[name]!r:.100}.")
        if wrong:
            raise ArgumentsError(" ".join(wrong))
        return checked


def _typed(kind: TypeAdapter[Any], value: Any) -> Any:
    try:
        return kind.validate_python(value)
    except ValidationError as error:
        if not isinstance(value, str):
            raise
        try:
            return kind.validate_json(value)
        except ValidationError:
            raise error from None


@cache  # asked for each completion
def tools_of(target: Any) -> tuple[Function, ...]:
    """The tools that a function is, or that a class has: its public methods, in their order.

    Raises:
        PrefoptError: it is neither, or one cannot be described.
    """
    if not isinstance(target, type):
        return (Function(target),)
    methods = [method for name, method in _methods(target) if name not in OWN and not name.startswith("_")]
    if not methods:
        raise PrefoptError(
            f"{target.__qualname__} has no tools: they are its public methods, other than {', '.join(OWN)}"
        )
    return tuple(map(Function, methods))


def _methods(target: type) -> Iterator[tuple[str, Any]]:
    """In the order of the text, those of base classes first."""
    names = dict.fromkeys(name for base in reversed(target.__mro__[:-1]) for name in vars(base))
    for name in names:
        method = getattr(target, name)
        if inspect.isfunction(method):
            yield name, method
