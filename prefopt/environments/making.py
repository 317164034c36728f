"""From the section of a recipe to environments, one for each completion."""

import inspect
from collections.abc import Callable
from copy import deepcopy
from functools import partial
from typing import Any

from prefopt import recipe
from prefopt.support.errors import PrefoptError
from prefopt.support.plugins import find, make
from prefopt.types import Environment

WHERE = "source.rollouts.environment"


def environment_factory(spec: recipe.Environment, where: str = WHERE) -> Callable[[], Environment]:
    """What makes an environment for each completion.

    A class is called with the section's fields, and a function likewise. Of an object that is made already, each completion gets
    a copy.

    Args:
        spec: the section that names it.
        where: what messages call the section.

    Raises:
        PrefoptError: an unknown name or field, or something that makes no environment: no `reset` and `step`.
    """
    named = find(spec.name, "environment", where=where)
    if inspect.isroutine(named):
        return lambda: _checked(partial(named, **spec.fields)(), f"{where}: what {spec.name} returned")
    environment = _checked(make(spec.name, spec.fields, "environment", where=where), f"{where}: {spec.name}")
    if isinstance(named, type):
        return lambda: make(spec.name, spec.fields, "environment", where=where)
    return lambda: deepcopy(environment)


def is_environment(named: Any) -> bool:
    """Whether a class or an object has what an environment has."""
    return all(callable(getattr(named, method, None)) for method in ("reset", "step"))


def _checked(environment: Any, name: str) -> Environment:
    for method in ("reset", "step"):
        if not callable(getattr(environment, method, None)):
            raise PrefoptError(
                f"{name} has no method {method!r}; an environment has reset(row, seed) and step(text, *, truncated)"
            )
    checked: Environment = environment
    return checked
