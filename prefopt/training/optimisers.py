"""Optimisers and schedules, as recipes name them."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn
from transformers import get_scheduler

from prefopt import recipe
from prefopt.support.errors import PrefoptError

LOW = (torch.bfloat16, torch.float16)
"""Types of weights that a small step may leave as they are: it is rounded away."""

WATCHED = 2**20
"""Weights of which it is counted how many move, at most; a copy of all of them would need much memory."""


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
        PrefoptError: there is nothing to train, or a number of the recipe is larger than any of the weights can be.
    """
    if not parameters:
        raise PrefoptError("no weight of this model is trainable")
    dtypes = {weight.dtype for group in parameters for weight in group["params"]}
    for key in ("lr", "critic_lr", "weight_decay"):
        value = getattr(settings, key) or 0.0
        if small := [dtype for dtype in dtypes if value > torch.finfo(dtype).max]:
            raise PrefoptError(f"train.{key} is {value:g}, and a weight of {small[0]} holds no such number: lower it")
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


@dataclass(frozen=True)
class LowPrecisionWeights:
    """The trainable weights of 16 bits, watched for whether optimiser steps move them.

    Attributes:
        weights: of the model, which change.
        apart: of a large model, one of so many is looked at.
    """

    weights: Sequence[Tensor]
    apart: int = 1

    @classmethod
    def of(cls, model: nn.Module) -> Self:
        """Those of a model; none where it has full precision."""
        low = [p for p in model.parameters() if p.requires_grad and p.dtype in LOW]
        # Odd, so that it does not fall into step with the length of a matrix's rows.
        return cls(low, math.ceil(sum(p.numel() for p in low) / WATCHED) | 1)

    def copy(self) -> list[Tensor]:
        """As they are now, flat."""
        return [weight.detach().flatten()[:: self.apart].clone() for weight in self.weights]

    def moved_since(self, before: Sequence[Tensor]) -> float:
        """The share of them that differ from a copy, 0 to 1."""
        counts = [(now != then).sum() for now, then in zip(self.copy(), before, strict=True)]
        return torch.stack(counts).sum().item() / sum(len(then) for then in before)
