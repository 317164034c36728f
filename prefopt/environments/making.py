"""From the section of a recipe to environments, one for each completion."""

import inspect
from collections.abc import Callable, Mapping
from copy import deepcopy
from functools import partial
from typing import Any

from prefopt import recipe
from prefopt.environments.checking import Shown, logged_names, missing_methods, shown_by
from prefopt.environments.gymnasium import Gymnasium
from prefopt.environments.search import Search
from prefopt.environments.textarena import TextArena
from prefopt.environments.tools import Tools
from prefopt.environments.trl import TRLEnvironment
from prefopt.support.errors import PrefoptError
from prefopt.support.plugins import NOTHING, asks_for, find, make
from prefopt.support.time_limits import LateError, within
from prefopt.types import Environment

WHERE = "source.rollouts.environment"


ENVIRONMENTS: dict[str, type] = {cls.__name__: cls for cls in (Search, Tools, Gymnasium, TextArena, TRLEnvironment)}
"""Every environment by the name that recipes give it."""


def environment_factory(
    spec: recipe.Environment,
    where: str = WHERE,
    tokenizer: Any = None,
    models: Mapping[str, Any] = NOTHING,
    whole: bool = True,
) -> Callable[[], Environment]:
    """What makes an environment for each completion.

    A class is called with the section's fields, and a function likewise. Of an object that is made already, each completion gets
    a copy.

    Args:
        spec: the section that names it.
        where: what messages call the section.
        tokenizer: the policy's, for an environment whose constructor asks for it by this name.
        models: of the run, `policy` and `reference`, for one whose constructor asks for them by this name; none while a recipe is
            checked.
        whole: refuse what lacks a method; without, whoever checks more of it says so.

    Raises:
        PrefoptError: an unknown name or field, or something that makes no environment: no `reset` and `step`.
    """

    def made() -> Any:
        running = {"tokenizer": tokenizer, "models": models}
        return make(spec.name, spec.fields, "environment", known=ENVIRONMENTS, where=where, running=running)

    named = find(spec.name, "environment", known=ENVIRONMENTS, where=where)
    checked = _checked if whole else lambda environment, _: environment
    if inspect.isroutine(named):
        return lambda: checked(partial(named, **spec.fields)(), f"{where}: what {spec.name} returned")
    environment = checked(made(), f"{where}: {spec.name}")
    if isinstance(named, type):
        return made
    return lambda: deepcopy(environment)


def asks_for_models(spec: recipe.Environment, where: str) -> bool:
    """Whether an environment's constructor asks for the run's models, as one with the policy as an opponent does."""
    return asks_for("models", find(spec.name, "environment", known=ENVIRONMENTS, where=where))


def check_section(spec: recipe.Environment, where: str, row: Mapping[str, Any]) -> Shown:
    """Refuse an environment that a row of data shows to be of another shape, or to take too long; returns what it showed.

    Args:
        spec: the section that names it.
        where: its key, for messages.
        row: with its prompt.

    Raises:
        PrefoptError: says which method, what it did and what it should.
    """
    factory, name = environment_factory(spec, where, whole=False), f"{where}: {spec.name}"
    try:
        return within(spec.timeout, name, lambda: shown_by(factory(), row, name))
    except LateError as error:
        raise PrefoptError(
            f"{name}: reset and a step were not back after {spec.timeout:g} seconds; make it faster, or give it longer: "
            f"{where}.timeout"
        ) from error


def logged_by(spec: recipe.Environment) -> tuple[str, ...]:
    """The numbers that an environment says it logs."""
    return logged_names(environment_factory(spec)(), str(spec.name))


def is_environment(named: Any) -> bool:
    """Whether a class or an object is meant as an environment: it has one of its methods."""
    return any(callable(getattr(named, method, None)) for method in ("reset", "step"))


def _checked(environment: Any, name: str) -> Environment:
    if faults := missing_methods(environment, name):
        raise PrefoptError(*faults)
    checked: Environment = environment
    return checked
