"""What is random in a model while it learns, such as the dropout of its adapter: switched off, or drawn again alike."""

import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from peft import PeftModel
from torch import nn

from prefopt.policy.methods import is_random
from prefopt.support.seeds import seed_for
from prefopt.types import Batch, Model, Needs, Outputs


def has_noise(model: nn.Module) -> bool:
    """Whether a model answers otherwise each time that it is asked in training mode; a model's own dropout is always off."""
    adapters = [module for module in model.modules() if isinstance(module, PeftModel)]
    return any(is_random(config) for adapter in adapters for config in adapter.peft_config.values())


@contextmanager
def without_noise(model: nn.Module) -> Iterator[None]:
    """In evaluation mode for a while: targets and what is monitored are of the policy itself, as it sampled."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


@dataclass(frozen=True)
class Noisy:
    """A model in training mode whose noise belongs to the update and to the rows that it is asked about at once.

    The same rows in the same update are answered alike, however often they are asked about: by gradient caching twice, and after a
    resume once more. Rows that are asked about in other company draw other noise, so with dropout an update depends on how its
    batch is split, through the noise alone.

    Attributes:
        model: that draws from torch's generators.
        seed: of the run and the update.
    """

    model: Model
    seed: int

    def __call__(self, batch: Batch, needs: Needs) -> Outputs:
        """The model's outputs."""
        rows = zlib.crc32(repr((batch.prompt_ids, batch.completion_ids[batch.mask].tolist())).encode())
        with torch.random.fork_rng([torch.cuda.current_device()] if torch.cuda.is_initialized() else []):
            torch.manual_seed(seed_for(self.seed, rows))
            return self.model(batch, needs)
