"""Optimisers, as recipes name them, and whether weights of 16 bits move under them."""

import importlib.metadata
import importlib.util
import inspect
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn

from prefopt import recipe
from prefopt.policy.sharding import own_part
from prefopt.support.errors import PrefoptError, nearest
from prefopt.support.plugins import load_object
from prefopt.training.devices import computes_on_cpu
from prefopt.training.muon import takes_muon
from prefopt.training.schedules import make_schedule

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
    if settings.optimizer.name == "muon":
        matrices = takes_muon(model)
        groups = [
            {**group, "params": [p for p in group["params"] if (id(p) in matrices) is kind], "muon": kind}
            for group in groups
            for kind in (True, False)
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
    return _constructed(parameters, settings)


OF_BITSANDBYTES = "bitsandbytes."
"""What the paths of its optimisers begin with."""

KNOWN: dict[str, str] = {
    "adamw": "torch.optim:AdamW",
    "sgd": "torch.optim:SGD",
    "rmsprop": "torch.optim:RMSprop",
    "adafactor": "torch.optim:Adafactor",
    "muon": "prefopt.training.muon:MuonWithAdamW",
    "adamw_8bit": "bitsandbytes.optim:AdamW8bit",
    "paged_adamw": "bitsandbytes.optim:PagedAdamW32bit",
    "paged_adamw_8bit": "bitsandbytes.optim:PagedAdamW8bit",
}
"""Optimisers by the names that recipes give them, and where they are."""

TAKEN: dict[str, tuple[str, ...]] = {
    "adamw": ("betas", "eps"),
    "adamw_8bit": ("betas", "eps"),
    "paged_adamw": ("betas", "eps"),
    "paged_adamw_8bit": ("betas", "eps"),
    "muon": ("betas", "eps"),
    "rmsprop": ("eps",),
}
"""What each is given of the recipe's `train` beside lr and weight_decay."""


def _constructed(parameters: Sequence[dict[str, Any]], settings: recipe.Train) -> torch.optim.Optimizer:
    spec = settings.optimizer
    cls = _optimizer_class(spec.name)
    known = [name for name in inspect.signature(cls).parameters if name not in ("params", "groups", "lr")]
    for field in spec.fields:
        if field not in known:
            say = " Write train.lr." if field == "lr" else nearest(field, known)
            raise PrefoptError(f"train.optimizer: {spec.name} has no field {field!r}.{say} It has: {', '.join(known)}.")
    fields = {name: getattr(settings, name) for name in TAKEN.get(spec.name, ())}
    if "weight_decay" in known:
        fields["weight_decay"] = settings.weight_decay
    if spec.name == "adamw":
        fields["fused"] = _can_fuse(parameters)
    try:
        optimizer: torch.optim.Optimizer = cls(parameters, lr=settings.lr, **(fields | spec.fields))
    except (TypeError, ValueError, RuntimeError) as error:
        raise PrefoptError(f"train.optimizer: {spec.name} cannot be made: {error}") from error
    return optimizer


def _optimizer_class(name: str) -> Any:
    """The class of an optimiser.

    Raises:
        PrefoptError: there is none of this name, or it is no optimiser of torch's kind.
    """
    if KNOWN.get(name, name).startswith(OF_BITSANDBYTES) and importlib.util.find_spec("bitsandbytes") is None:
        raise PrefoptError(f"train.optimizer: {name} needs bitsandbytes: pip install 'prefopt-research[bitsandbytes]'")
    try:
        cls = load_object(KNOWN.get(name, name))
    except PrefoptError as error:
        raise PrefoptError(f"train.optimizer: {error}") from error
    if not (isinstance(cls, type) and issubclass(cls, torch.optim.Optimizer)):
        raise PrefoptError(f"train.optimizer: {name} is no class of torch.optim.Optimizer's kind")
    return cls


def check_training(settings: recipe.Train) -> None:
    """Refuse an optimiser or a schedule that cannot be made, before a model is loaded.

    Raises:
        PrefoptError: what `make_optimizer` and `make_schedule` refuse.
    """
    path = KNOWN.get(settings.optimizer.name, settings.optimizer.name)
    small = (
        nn.Linear(64, 64) if path.startswith(OF_BITSANDBYTES) else nn.Linear(4, 4)
    )  # smaller ones keep 32 bits there
    groups: list[dict[str, Any]] = [{"params": [weight]} for weight in small.parameters()]
    if settings.optimizer.name == "muon":
        groups = [{**group, "muon": group["params"][0].ndim == 2} for group in groups]
    optimizer = make_optimizer(groups, settings)
    if path.startswith(OF_BITSANDBYTES) and computes_on_cpu():
        _try_on_cpu(optimizer, small, settings.optimizer.name)
    schedule = make_schedule(optimizer, settings, updates=10)
    for _ in range(10):
        optimizer.step()
        schedule.step()


def _try_on_cpu(optimizer: Any, small: nn.Linear, name: str) -> None:
    """Take a step, which has no kernel for CPUs in older versions.

    Raises:
        PrefoptError: it cannot, or would not be what its name says.
    """
    if getattr(optimizer, "is_paged", False):
        raise PrefoptError(
            f"train.optimizer: {name} keeps its averages where a GPU and the CPU can page them, and this run is on a CPU: write "
            f"{'adamw_8bit' if '8bit' in name else 'adamw'}"
        )
    for weight in small.parameters():
        weight.grad = torch.ones_like(weight)
    try:
        optimizer.step()
    except (RuntimeError, NotImplementedError, AttributeError, TypeError, ValueError) as error:
        version = importlib.metadata.version("bitsandbytes")
        raise PrefoptError(
            f"train.optimizer: {name} of bitsandbytes {version} does not work on this CPU ({error}): pip install -U bitsandbytes"
        ) from error
    optimizer.zero_grad()


def _can_fuse(groups: Sequence[dict[str, Any]]) -> bool | None:
    """Whether one kernel can do a whole update of these weights; None leaves it to torch."""
    weights = [weight for group in groups for weight in group["params"]]
    return all(w.device.type in ("cpu", "cuda") and w.is_floating_point() for w in weights) or None


@dataclass(frozen=True)
class LowPrecisionWeights:
    """The trainable weights of 16 bits, watched for whether optimiser steps move them; of sharded ones, this process's.

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
        return [own_part(weight.detach()).flatten()[:: self.apart].clone() for weight in self.weights]

    def moved_since(self, before: Sequence[Tensor]) -> float:
        """The share of them that differ from a copy, 0 to 1."""
        counts = [(now != then).sum() for now, then in zip(self.copy(), before, strict=True)]
        return torch.stack(counts).sum().item() / max(sum(len(then) for then in before), 1)
