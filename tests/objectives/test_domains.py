"""Every number of every objective and transform has a domain, and is refused by name outside of it."""

import dataclasses
import math
import typing
from typing import Any

import pytest

from prefopt.feedback.make import TRANSFORMS
from prefopt.objectives import CATALOGUE, load_objective
from prefopt.support.errors import PrefoptError
from prefopt.support.plugins import checked_fields, make


def _numbers(cls: Any) -> list[str]:
    hints = typing.get_type_hints(cls)
    return [
        field.name
        for field in dataclasses.fields(cls)
        if field.init and float in (hints[field.name], *typing.get_args(hints[field.name]))
    ]


FIELDS = [(name, field) for name, cls in CATALOGUE.items() for field in _numbers(cls)]

BETA_ABOVE_0 = sorted(
    name
    for name, cls in CATALOGUE.items()
    if any(f.name == "beta" for f in dataclasses.fields(cls)) and cls.__module__.startswith("prefopt.objectives.pref")
)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf], ids=str)
@pytest.mark.parametrize(("name", "field"), FIELDS)
def test_no_number_of_an_objective_is_nan_or_infinite(name: str, field: str, value: float) -> None:
    with pytest.raises(PrefoptError, match=field):
        load_objective(name, **{field: value})


@pytest.mark.parametrize("name", CATALOGUE)
def test_defaults_are_in_their_domains(name: str) -> None:
    checked_fields(CATALOGUE[name](), name)


@pytest.mark.parametrize("beta", [0, -0.1])
@pytest.mark.parametrize("name", BETA_ABOVE_0)
def test_a_preference_loss_wants_beta_above_0(name: str, beta: float) -> None:
    with pytest.raises(PrefoptError, match=r"beta.*0"):
        load_objective(name, beta=beta)


@pytest.mark.parametrize(
    ("name", "field", "outside", "inside"),
    [
        ("PPO", "beta", -0.1, 0),
        ("PPO", "gamma", 1.01, 1),
        ("PPO", "lam", -0.01, 0),
        ("PPO", "c_v", -1, 0),
        ("PPO", "epsilon", 0, 0.2),
        ("PPO", "tis", 0, 2),
        ("GRPO", "e", 0, 1e-6),
        ("NashMD", "tau", -0.1, 0),
        ("SimPO", "gamma", -0.1, 0),
        ("CDPO", "epsilon", 0.5, 0),
        ("RobustDPO", "epsilon", -0.1, 0.49),
        ("BetaDPO", "momentum", 1, 0),
        ("BetaDPO", "rho", 0, 1),
        ("KTO", "lam_u", -1, 0),
        ("SLiC", "delta", -1, 0),
        ("ORPO", "lam", -1, 0),
        ("LDDPO", "alpha", 1.1, 1),
        ("DMPO", "gamma", 1.1, 1),
        ("RPODiagonal", "diagonal", 1.1, 1),
        ("BradleyTerry", "centering", -0.1, 0),
        ("XPO", "alpha", -1e-5, 0),
    ],
)
def test_the_end_of_a_domain(name: str, field: str, outside: float, inside: float) -> None:
    assert getattr(load_objective(name, **{field: inside}), field) == inside
    with pytest.raises(PrefoptError, match=field):
        load_objective(name, **{field: outside})


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf], ids=str)
@pytest.mark.parametrize(
    ("name", "field"), [(name, field) for name, cls in TRANSFORMS.items() for field in _numbers(cls)]
)
def test_no_number_of_a_transform_is_nan_or_infinite(name: str, field: str, value: float) -> None:
    others = {"LengthPenalty": {"limit": 1, "weight": 0.1}}.get(name, {})
    with pytest.raises(PrefoptError, match=field):
        make(name, others | {field: value}, "transform", known=TRANSFORMS)
