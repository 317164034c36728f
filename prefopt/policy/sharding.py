"""Weights divided among processes by torch's `fully_shard` (FSDP2, arXiv 2304.11277): by layer, each gathered while it computes.

Every process holds its share of each weight, of the weight's gradient and of the optimiser's numbers for it. What reads weights
outside of a forward pass asks here: whole on the main process (`whole_weights`), or gathered everywhere (`gathered`).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers import PreTrainedModel

from prefopt.policy.compat import blocks_of, show_tensors_of
from prefopt.policy.critic import ValueHead
from prefopt.policy.policy import Policy
from prefopt.policy.scorer import Scorer
from prefopt.support.errors import PrefoptError
from prefopt.types import Batch, Needs, Outputs


def shard_weights(model: Policy | Scorer, accelerator: Accelerator) -> None:
    """Divide a model's weights among all processes, layer by layer; on every process, with the same weights on all.

    In mixed precision layers are gathered in the 16 bits that they compute in, and gradients are added up in 32. Everything outside
    of layers (embedding, head, a critic's head) is gathered as it is, for as long as the model is asked.

    Args:
        model: on the CPU or where it will compute.
        accelerator: knows the processes and the arithmetic.

    Raises:
        PrefoptError: the architecture does not say what its layers are.
    """
    show_tensors_of(Outputs)  # in which FSDP looks for what a backward pass begins with
    mesh = init_device_mesh(accelerator.device.type, (accelerator.num_processes,))
    low = torch.bfloat16 if accelerator.mixed_precision == "bf16" else None
    whole = next(module for module in model.modules() if isinstance(module, PreTrainedModel))
    if not (kinds := blocks_of(whole)):
        raise PrefoptError(
            f"train.shard: {type(whole).__name__} does not say what its layers are (`_no_split_modules`), by which its weights "
            "would be divided: leave train.shard out, and train an adapter (policy.adapter) where memory is short"
        )
    for module in reversed(list(model.modules())):  # what is inside comes first
        if type(module).__name__ in kinds:
            reduced = MixedPrecisionPolicy(low, torch.float32 if low else None, cast_forward_inputs=False)
            fully_shard(module, mesh=mesh, mp_policy=reduced, reshard_after_forward=True)
        elif isinstance(module, ValueHead):  # which may have other bits than the model
            fully_shard(module, mesh=mesh, reshard_after_forward=True)
    fully_shard(model, mesh=mesh, reshard_after_forward=True)
    _begin(model, accelerator)


@torch.no_grad()
def _begin(model: Policy | Scorer, accelerator: Accelerator) -> None:
    """Ask a policy once about the same few tokens on all processes.

    It compares its head with the model's own then, in further passes through layers: among batches of which each process has other
    rows, one would wait for another.
    """
    if isinstance(model, Policy):
        ids = torch.tensor([[[1, 2, 3]]], device=accelerator.device)
        with accelerator.autocast():
            model(Batch(((1, 2),), ids, torch.ones_like(ids, dtype=torch.bool)), Needs())


@contextmanager
def gathered(model: nn.Module) -> Iterator[None]:
    """All weights whole on every process for a while, so that processes may ask a model different numbers of times.

    Nothing happens to a model that is not sharded. To be entered on all processes at once.
    """
    parts = _parts(model)
    for part in parts:
        part.unshard()
        part.set_reshard_after_forward(False, recurse=False)
    try:
        yield
    finally:
        for part in parts:
            part.set_reshard_after_forward(True, recurse=False)
            part.reshard()


@contextmanager
def whole_weights(*models: nn.Module, accelerator: Accelerator) -> Iterator[None]:
    """The weights whole on the CPU of the main process for a while, to be read and saved there; it must not be asked meanwhile.

    Weights are gathered one at a time. To be entered on all processes at once; nothing happens to models that are not sharded.
    """
    places: list[tuple[dict[str, Any], str, Any]] = []
    whole: dict[int, nn.Parameter] = {}
    for model in models:
        for part in _parts(model):
            part.reshard()
        for module in model.modules():
            own: dict[str, Any] = module._parameters
            places += [(own, name, weight) for name, weight in own.items() if isinstance(weight, DTensor)]
    for _, _, weight in places:
        if id(weight) not in whole:
            values = weight.detach().full_tensor()
            if accelerator.is_main_process:
                whole[id(weight)] = nn.Parameter(values.cpu(), requires_grad=weight.requires_grad)
            else:
                whole[id(weight)] = nn.Parameter(values.new_empty(0), requires_grad=False)  # let go of
    try:
        for parameters, name, weight in places if accelerator.is_main_process else ():
            parameters[name] = whole[id(weight)]
        yield
    finally:
        for parameters, name, weight in places:
            parameters[name] = weight


def whole_state(state: Any) -> Any:
    """An optimiser's state with its tensors whole, on the CPU; on all processes at once, in the same order."""
    if isinstance(state, DTensor):
        return state.full_tensor().cpu()
    if isinstance(state, dict):
        return {key: whole_state(value) for key, value in state.items()}
    return type(state)(map(whole_state, state)) if type(state) in (list, tuple) else state


def divided_like(value: Tensor, weight: Tensor) -> Tensor:
    """A whole tensor, which all processes have, divided as a weight of this shape is; what is not of its shape stays whole."""
    if not isinstance(weight, DTensor) or value.shape != weight.shape:
        return value
    return distribute_tensor(value.to(weight.device), weight.device_mesh, weight.placements, src_data_rank=None)


def own_part(weight: Tensor) -> Tensor:
    """What this process holds of a weight; all of it where it is not sharded."""
    return weight.to_local() if isinstance(weight, DTensor) else weight


def _parts(model: nn.Module) -> list[FSDPModule]:
    return [module for module in model.modules() if isinstance(module, FSDPModule)]
