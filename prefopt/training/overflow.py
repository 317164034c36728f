"""Numbers too large for their bits: gradients in fp16, for which the loss is scaled, and weights whose squares are infinite."""

import math
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from prefopt.policy.sharding import own_part, whole_state
from prefopt.support.errors import PrefoptError

LEAST = 1.0
"""Smallest scale of a loss: gradients that overflow under it are too large themselves, and the training has diverged."""

FP16_ENDS = ", or numbers above 65504, the largest of fp16 (try train.precision: fp32)"
"""A further cause of a loss that is not finite."""


class LossScale:
    """The factor of the loss that keeps gradients in fp16 between 6e-8 and 65504 (arXiv 1710.03740, section 3.2).

    It is 2^16 at first, is halved when a gradient overflowed, and doubled after 2000 updates without; in other arithmetic it is 1
    throughout. Processes exchange gradients before they are looked at, so that all have the same scale.

    Args:
        model: whose weights are trained.
        accelerator: knows the arithmetic.

    Raises:
        PrefoptError: arithmetic is fp16, and a weight that is trained has as few bits.
    """

    def __init__(self, model: nn.Module, accelerator: Accelerator):
        self.used = accelerator.mixed_precision == "fp16"
        for name, weight in model.named_parameters() if self.used else ():
            if weight.requires_grad and weight.dtype in (torch.float16, torch.bfloat16):
                raise PrefoptError(
                    f"train.precision: fp16 trains weights of 32 bits, and {name} is {weight.dtype}: set policy.dtype to float32"
                )
        self._scaler = torch.amp.GradScaler(accelerator.device.type, enabled=self.used)

    def scaled(self, loss: Tensor) -> Tensor:
        """A loss as it goes into its backward pass."""
        return self._scaler.scale(loss)

    def clip(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, largest: float | None
    ) -> dict[str, Tensor | float]:
        """Divide the gradients by the scale, and clip their norm to `largest`, if any.

        Gradients that overflowed because of the scale, which is halved then, are removed: a step of none changes nothing. Under
        the smallest scale they stay, since it is not the cause.

        Returns:
            grad_norm, before clipping, a tensor; in fp16 also loss_scale, and overflow, which is 1 where gradients were removed
            (grad_norm is NaN then), else 0.
        """
        scale = self._scaler.get_scale()
        self._scaler.unscale_(optimizer)
        self._scaler.update()
        weights = list(model.parameters())
        # Of weights that are sharded, a norm over all processes, which is asked for as a number.
        whole = whole_state(nn.utils.get_total_norm([weight.grad for weight in weights if weight.grad is not None]))
        nn.utils.clip_grads_with_norm_(weights, largest or math.inf, whole)
        if not self.used:
            return {"grad_norm": whole}
        overflow = LEAST <= self._scaler.get_scale() < scale
        if overflow:
            optimizer.zero_grad()
        return {"grad_norm": math.nan if overflow else whole, "loss_scale": scale, "overflow": float(overflow)}

    def state_dict(self) -> dict[str, Any]:
        """The scale, and the number of updates since it changed; nothing in other arithmetic."""
        return self._scaler.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there."""
        self._scaler.load_state_dict(state)


def has_finite_squares(weight: Tensor) -> bool:
    """Whether every number that this process holds has a finite square in 32 bits, or in 64 where it has as many."""
    largest = torch.finfo(torch.promote_types(weight.dtype, torch.float32)).max ** 0.5
    return bool((own_part(weight.detach()).abs() <= largest).all())  # of NaN it is False
