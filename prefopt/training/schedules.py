"""How the learning rate goes from update to update: transformers' schedules by their names, or a function of the user's."""

import inspect
import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch.optim.lr_scheduler import LambdaLR
from transformers import SchedulerType, get_scheduler
from transformers.optimization import TYPE_TO_SCHEDULER_FUNCTION

from prefopt import recipe
from prefopt.support.errors import PrefoptError, nearest, some_of
from prefopt.support.given import Given
from prefopt.support.plugins import check_call, load_object, users_code

OTHER_NAMES = {"constant": "constant_with_warmup", "wsd": "warmup_stable_decay"}
"""Shorter names of transformers' schedules. Its own `constant` has no warm-up, which is `train.warmup: 0` here."""

GIVEN = {"optimizer", "num_warmup_steps", "num_training_steps", "num_stable_steps", "last_epoch"}
"""What transformers' functions take that a recipe says elsewhere."""

DEFAULTS: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "warmup_stable_decay": {"num_decay_steps": 0.1},
        "cosine_with_min_lr": {"min_lr_rate": 0.1},
        "cosine_warmup_with_min_lr": {"min_lr_rate": 0.1},
    }
)
"""Where transformers has none. MiniCPM found that a decay over 10% of the updates is enough (arXiv 2404.06395, §4.3)."""


def make_schedule(optimizer: torch.optim.Optimizer, settings: recipe.Train, updates: int) -> LambdaLR:
    """The recipe's schedule; it counts optimiser steps.

    Not handed to accelerate, which would step it once for every process.

    Raises:
        PrefoptError: an unknown name or field, or a value that cannot be.
    """
    spec = settings.schedule
    inner = getattr(optimizer, "optimizer", optimizer)
    if ":" in spec.name or isinstance(spec.name, Given):
        return LambdaLR(inner, _own_factor(spec, max(updates, 1)))
    kind, fields = _named(spec, updates)
    warmup = settings.warmup if settings.warmup >= 1 else settings.warmup * updates
    try:
        schedule: LambdaLR = get_scheduler(
            kind,
            inner,
            num_warmup_steps=round(warmup),
            num_training_steps=max(updates, 1),
            scheduler_specific_kwargs=fields,
        )
    except (TypeError, ValueError) as error:
        raise PrefoptError(f"train.schedule: {spec.name}: {error}") from error
    return schedule


def _named(spec: recipe.Schedule, updates: int) -> tuple[str, dict[str, Any]]:
    """transformers' name of a schedule, and its fields."""
    kind = OTHER_NAMES.get(spec.name, spec.name)
    function: Any = TYPE_TO_SCHEDULER_FUNCTION[SchedulerType(kind)]
    parameters = inspect.signature(function).parameters
    known = [name for name in parameters if name not in GIVEN]
    for field in spec.fields:
        if field not in known:
            has = f" It has: {', '.join(known)}." if known else " It has none."
            raise PrefoptError(f"train.schedule: {spec.name} has no field {field!r}.{nearest(field, known)}{has}")
    defaults = {} if {"min_lr", "min_lr_rate"} & spec.fields.keys() else DEFAULTS.get(kind, {})
    fields = {**defaults, **spec.fields}
    decay = fields.get("num_decay_steps")
    if isinstance(decay, float) and decay < 1:  # a share, as train.warmup can be
        fields["num_decay_steps"] = round(decay * updates)
    return kind, fields


def _own_factor(spec: recipe.Schedule, updates: int) -> Callable[[int], float]:
    """A user's function, whose answers are looked at."""
    where = f"train.schedule: {spec.name}"
    try:
        function = load_object(spec.name)
    except PrefoptError as error:
        raise PrefoptError(f"train.schedule: {error}") from error
    check_call(function, ("step", "steps"), where)
    if spec.fields:
        raise PrefoptError(f"{where} is a function of (step, steps), which has no fields ({some_of([*spec.fields])})")

    def factor(step: int) -> float:
        with users_code(where):
            value = function(step, updates)
        if not isinstance(value, float | int) or not (math.isfinite(value) and value >= 0):
            raise PrefoptError(
                f"{where} gave {value!r} at step {step} of {updates}; a factor of train.lr is 0 or above"
            )
        return float(value)

    return factor
