"""The numbers of an update, from the device that computed them."""

from collections.abc import Mapping

import torch
from torch import Tensor

from prefopt.objectives.terms import MetricKey

Metrics = dict[MetricKey, float]
"""Numbers of the run, and of each of its terms."""


def on_host(metrics: Mapping[MetricKey, Tensor | float]) -> Metrics:
    """All of them as numbers; the host waits once for each device that some are on, not once for each."""
    by_device: dict[torch.device, dict[MetricKey, Tensor]] = {}
    for key, value in metrics.items():
        if isinstance(value, Tensor):
            by_device.setdefault(value.device, {})[key] = value
    numbers: Metrics = {}
    for values in by_device.values():
        numbers |= zip(values, torch.stack([value.double() for value in values.values()]).tolist(), strict=True)
    return {key: numbers[key] if isinstance(value, Tensor) else value for key, value in metrics.items()}
