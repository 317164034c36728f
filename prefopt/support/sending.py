"""Copies from the host to the device that computes, for which the host does not wait."""

import torch
from torch import Tensor


def sent(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor on `device`. From the host to a GPU it goes by pinned memory, in the order of the GPU's other work."""
    if device.type == "cuda" and tensor.device.type == "cpu":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def placed(values: Tensor, mask: Tensor) -> Tensor:
    """Values [M] at the True places of a mask [...], in order, and 0 elsewhere, on the values' device.

    `masked_scatter` does the same, and its backward pass counts the mask on the device, for which the host waits.

    Args:
        values: [M], or more, of which the last are left out.
        mask: [...] bool; on the host, nothing waits.
    """
    places = sent(mask.flatten().nonzero()[:, 0], values.device)
    return values.new_zeros(mask.numel()).index_copy(0, places, values[: len(places)]).view(mask.shape)
