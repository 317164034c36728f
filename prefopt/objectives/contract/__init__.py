"""The contract of an objective, which `prefopt check` runs on anybody's.

Small checks in a fixed order; each failure says what was expected, what came, and the likely cause. A class may declare an
exception with its reason: `contract_exceptions = {"prefers chosen": "the reason"}`.
"""

import dataclasses
import sys
import traceback
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from prefopt.objectives.contract.case import Case, make_case
from prefopt.objectives.contract.checks import CHECKS, Finding
from prefopt.support.errors import PrefoptError, nearest
from prefopt.types import AXES, Needs, Objective

__all__ = ["BASIC", "CHECKS", "ContractError", "check_objective", "make_case"]


class ContractError(PrefoptError):
    """An objective breaks the contract."""

    def __init__(self, objective: Any, check: str, expected: str, got: str, cause: str):
        super().__init__(
            f"{_name(objective)} breaks the contract at “{check}”: expected {expected}; got {got}. Likely cause: {cause}"
        )
        self.check = check


BASIC = ("runs", "shapes")
"""The checks that a run makes of a user's objective before anything is loaded; `prefopt check` makes them all."""


def check_objective(
    objective: Objective | type[Objective], seed: int = 0, only: Collection[str] | None = None
) -> list[str]:
    """Run the contract.

    Args:
        objective: an objective, or its class, which must then be constructible with defaults.
        seed: of the random batch it is run on.
        only: names of checks; None is all.

    Returns:
        The names of the checks that passed, in order.

    Raises:
        ContractError: the first check that failed.
    """
    if isinstance(objective, type):
        try:
            objective = objective()
        except Exception as error:
            raise ContractError(
                objective,
                "constructs",
                "an objective from its defaults",
                f"{type(error).__name__}: {error}",
                "a field without a default",
            ) from error
    _check_form(objective)
    excused = _exceptions(objective)
    case = make_case(objective, seed)
    passed = ["form"]
    for name, check in CHECKS.items():
        if name in excused or (only is not None and name not in only):
            continue
        for expected, got, cause in _run(objective, name, check, case):
            raise ContractError(objective, name, expected, got, cause)
        passed.append(name)
    return passed


def _check_form(objective: Any) -> None:
    parameters = vars(type(objective)).get("__dataclass_params__")
    if parameters is None or not parameters.frozen:
        raise ContractError(
            objective,
            "form",
            "a frozen dataclass",
            type(objective).__name__,
            "@dataclass(frozen=True) is missing above the class",
        )
    if not isinstance(getattr(objective, "needs", None), Needs):
        raise ContractError(
            objective,
            "form",
            "`needs`, a prefopt.Needs",
            repr(getattr(objective, "needs", None)),
            "it was not declared",
        )
    for method in ("targets", "loss"):
        if not callable(getattr(objective, method, None)):
            raise ContractError(objective, "form", f"a method `{method}`", "none", "see prefopt.Objective")


def _exceptions(objective: Any) -> Mapping[str, str]:
    excused = getattr(objective, "contract_exceptions", {})
    for name, reason in excused.items():
        if name not in CHECKS:
            raise ContractError(
                objective,
                "form",
                f"contract_exceptions to name checks: {', '.join(CHECKS)}",
                repr(name),
                f"a misspelling.{nearest(name, CHECKS)}",
            )
        if not (isinstance(reason, str) and reason.strip()):
            raise ContractError(
                objective, "form", f"a reason for the exception {name!r}", repr(reason), "none was given"
            )
    return excused


def _run(objective: Objective, name: str, check: Callable[[Case], Iterator[Finding]], case: Case) -> Iterator[Finding]:
    try:
        yield from check(case)
    except Exception as error:
        message = f"{type(error).__name__}: {error}".removesuffix(": ")
        yield "no exception", message + _where(objective, error), _undeclared(objective)


def _where(objective: Objective, error: Exception) -> str:
    """The line of the objective's own file that an exception passed through last."""
    own = sys.modules[type(objective).__module__].__dict__.get("__file__")
    lines = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename == own]
    return f" at {Path(lines[-1].filename).name}:{lines[-1].lineno}, `{lines[-1].line}`" if lines else ""


def _undeclared(objective: Objective) -> str:
    """Why an objective fails: something it would run with but has not declared, if there is such a thing."""
    needs = objective.needs
    names = ("reference", "scores", "preference", "old", "values", "rewards")
    more: list[tuple[str, Any]] = [(name, True) for name in names if not getattr(needs, name)]
    more += [("axes", {**needs.axes, column: "completion"}) for column in needs.columns if column not in AXES]
    for name, value in more:
        changed: Any = {name: value}
        try:
            make_case(objective, needs=dataclasses.replace(needs, **changed)).single().loss()
        except Exception:  # not this one
            continue
        return f"it reads what its `needs` do not declare: it runs with Needs({name}={value!r})"
    return "the objective asks for more than its `needs` declare, or for another shape"


def _name(objective: Any) -> str:
    return objective.__name__ if isinstance(objective, type) else type(objective).__name__
