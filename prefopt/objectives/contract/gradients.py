"""Gradients of an objective's loss for the policy's outputs."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from prefopt.objectives.contract.case import Case


class StopGradients(TorchFunctionMode):
    """Records what `Tensor.detach` returned, in order, and can play it back: stop-gradients become constants."""

    def __init__(self) -> None:
        super().__init__()
        self.values: list[Tensor] = []
        self.next: int | None = None

    def replayed(self) -> "StopGradients":
        """The same mode, from the first recorded value on."""
        self.next = 0
        return self

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func not in (Tensor.detach, torch.detach):
            return result
        if self.next is None:
            self.values.append(result)
            return result
        self.next += 1
        return self.values[self.next - 1]


def with_outputs(case: Case, fields: Mapping[str, Tensor]) -> Case:
    """The same case with other tensors for these fields of the policy's outputs."""
    return dataclasses.replace(case, policy=case.policy.with_fields(fields))


def with_leaves(case: Case) -> tuple[Case, dict[str, Tensor]]:
    """The same case with the policy's outputs as leaves, and these by name."""
    leaves = {name: value.detach().clone().requires_grad_() for name, value in case.policy.fields().items()}
    return with_outputs(case, leaves), leaves


def gradients_of(total: Tensor, leaves: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The gradient for each leaf; 0 where the total does not depend on it."""
    gradients = torch.autograd.grad(total, list(leaves.values()), allow_unused=True)
    return {
        n: torch.zeros_like(leaf) if g is None else g for (n, leaf), g in zip(leaves.items(), gradients, strict=True)
    }
