"""Optimisers and schedules, as recipes name them."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from transformers import get_scheduler

from prefopt import recipe
from prefopt.support.errors import PrefoptError


def parameter_groups(model: nn.Module, settings: recipe.Train) -> list[dict[str, Any]]:
    """Trainable weights; those of a critic may have a learning rate of their own."""
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    groups: list[dict[str, Any]] = [
        {"params": [p for name, p in named if not name.startswith("critic.")]},
        {"params": [p for name, p in named if name.startswith("critic.")], "lr": settings.critic_lr or settings.lr},
    ]
    return [group for group in groups if group["params"]]


def make_optimizer(parameters: Sequence[dict[str, Any]], settings: recipe.Train) -> torch.optim.Optimizer:
    """The optimiser that a recipe names.

    Raises:
        PrefoptError: there is nothing to train.
    """
    if not parameters:
        raise PrefoptError("no weight of this model is trainable")
    common: dict[str, Any] = {"lr": settings.lr, "weight_decay": settings.weight_decay}
    makers: dict[str, Callable[[], torch.optim.Optimizer]] = {
        "adamw": lambda: torch.optim.AdamW(
            parameters, betas=settings.betas, eps=settings.eps, fused=_can_fuse(parameters), **common
        ),
        "rmsprop": lambda: torch.optim.RMSprop(parameters, eps=settings.eps, **common),
        "sgd": lambda: torch.optim.SGD(parameters, **common),
    }
    return makers[settings.optimizer]()


def _can_fuse(groups: Sequence[dict[str, Any]]) -> bool | None:
    """Whether one kernel can do a whole update of these weights; None leaves it to torch."""
    weights = [weight for group in groups for weight in group["params"]]
    return all(w.device.type in ("cpu", "cuda") and w.is_floating_point() for w in weights) or None


def make_schedule(optimizer: torch.optim.Optimizer, settings: recipe.Train, updates: int):
    """Linear warm-up, then the recipe's decay; it counts optimiser steps.

    Not handed to accelerate, which would step it once for every process.
    """
    warmup = settings.warmup if settings.warmup >= 1 else settings.warmup * updates
    name = "constant_with_warmup" if settings.schedule == "constant" else settings.schedule
    inner = getattr(optimizer, "optimizer", optimizer)
    return get_scheduler(name, inner, num_warmup_steps=round(warmup), num_training_steps=max(updates, 1))
