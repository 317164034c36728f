"""Weights divided among processes by torch's `fully_shard` (FSDP2, arXiv 2304.11277): by layer, each gathered while it computes.

Every process holds its share of each weight, of the weight's gradient and of the optimiser's numbers for it. What reads weights
outside of a forward pass asks here for them whole on the main process (`whole_weights`); processes that ask a model different
numbers of times, as those that draw completions do, do it within `asked_apart`.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.distributed import ReduceOp, all_reduce
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, MixedPrecisionPolicy, OffloadPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers import PreTrainedModel

from prefopt import recipe
from prefopt.policy.compat import blocks_of, show_tensors_of
from prefopt.policy.critic import ValueHead
from prefopt.policy.policy import Policy
from prefopt.policy.scorer import Scorer
from prefopt.support.errors import PrefoptError
from prefopt.types import Batch, Needs, Outputs

_GATHER: WeakKeyDictionary[nn.Module, str] = WeakKeyDictionary()
"""What is gathered at a time while processes ask a sharded model different numbers of times: `Shard.gather`."""

_ASKED_APART: set[int] = set()
"""Models, by `id`, that are within `asked_apart` already."""


def shard_weights(model: Policy | Scorer, accelerator: Accelerator, spec: recipe.Shard) -> None:
    """Divide a model's weights among all processes, layer by layer; on every process, with the same weights on all.

    In mixed precision layers are gathered in the 16 bits that they compute in, and gradients are added up in 32. Everything outside
    of layers (embedding, head, a critic's head) is gathered as it is, for as long as the model is asked.

    Args:
        model: on the CPU or where it will compute.
        accelerator: knows the processes and the arithmetic.
        spec: how; with `offload` what a process holds stays on its CPU, where the optimiser then works, and goes to the device a
            layer at a time.

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
    on_cpu = spec.offload and mesh.device_type != "cpu"  # where they are on a CPU's mesh anyway
    common: dict[str, Any] = {"mesh": mesh, "offload_policy": CPUOffloadPolicy() if on_cpu else OffloadPolicy()}
    for module in reversed(list(model.modules())):  # what is inside comes first
        if type(module).__name__ in kinds:
            reduced = MixedPrecisionPolicy(low, torch.float32 if low else None, cast_forward_inputs=False)
            fully_shard(module, **common, mp_policy=reduced, reshard_after_forward=True)
        elif isinstance(module, ValueHead):  # which may have other bits than the model
            fully_shard(module, **common, reshard_after_forward=True)
    fully_shard(model, **common, reshard_after_forward=True)
    _GATHER[model] = spec.gather
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
def asked_apart(
    models: Sequence[Policy], autocast: Callable[[], AbstractContextManager], on: torch.device
) -> Iterator[None]:
    """Processes may ask these models different numbers of times, without gradient, until all of them are done.

    With `Shard.gather` of `layer`, a process that is done goes through layers with a single token for as long as another one
    needs them; embedding and head are whole meanwhile. With `model` all weights are. To be entered on all processes at once, which
    do not communicate otherwise within it; nothing happens to models that are not sharded.

    Args:
        models: distinct.
        autocast: their arithmetic.
        on: the device on which processes communicate.

    Raises:
        PrefoptError: raised within it on this process; the others are not kept waiting.
    """
    sharded = [model for model in models if _parts(model) and id(model) not in _ASKED_APART]
    held = [part for m in sharded for part in _parts(m) if part is m or _GATHER[m] == "model"]
    lockstep = _Lockstep([_backbone(model) for model in sharded if _GATHER[model] == "layer"], autocast, on)
    _ASKED_APART.update(map(id, sharded))
    for part in held:
        part.unshard()
        part.set_reshard_after_forward(False, recurse=False)
    try:
        yield
        lockstep.finish()
    except PrefoptError:
        lockstep.finish()
        raise
    finally:
        lockstep.remove()
        for part in held:
            part.set_reshard_after_forward(True, recurse=False)
            part.reshard()
        _ASKED_APART.difference_update(map(id, sharded))


class _Lockstep:
    """Before each forward pass of a process all agree on which model is asked next, and all ask it, some with nothing to ask.

    Args:
        backbones: the models, without what stands on their layers.
        autocast: their arithmetic.
        on: the device on which processes communicate.
    """

    def __init__(
        self, backbones: Sequence[nn.Module], autocast: Callable[[], AbstractContextManager], on: torch.device
    ):
        self.backbones, self.autocast, self.on = backbones, autocast, on
        self.keeping_company = False
        self.hooks = [
            backbone.register_forward_pre_hook(lambda *_, own=number: self._before(own))
            for number, backbone in enumerate(backbones)
        ]

    def finish(self) -> None:
        """Keep the others company until none of them asks any more."""
        while self.backbones and (asked := self._agreed(len(self.backbones))) < len(self.backbones):
            self._keep_company(asked)

    def remove(self) -> None:
        for hook in self.hooks:
            hook.remove()

    def _before(self, own: int) -> None:
        while not self.keeping_company and (asked := self._agreed(own)) != own:
            self._keep_company(asked)

    def _agreed(self, own: int) -> int:
        """The first model that any process asks."""
        first = torch.tensor(own, device=self.on)
        all_reduce(first, ReduceOp.MIN)
        return int(first)

    @torch.no_grad()
    def _keep_company(self, number: int) -> None:
        backbone, self.keeping_company = self.backbones[number], True
        training = backbone.training
        backbone.eval()  # dropout would draw
        with self.autocast():
            backbone(input_ids=torch.zeros(1, 1, dtype=torch.long, device=self.on), use_cache=False)
        backbone.train(training)
        self.keeping_company = False


def _backbone(policy: Policy) -> nn.Module:
    """What every way of asking a language model goes through once."""
    backbone: nn.Module = getattr(policy.causal, policy.causal.base_model_prefix)
    return backbone


@contextmanager
def whole_weights(*models: nn.Module, accelerator: Accelerator, trained: bool = False) -> Iterator[None]:
    """The weights whole on the CPU of the main process for a while, to be read and saved there; it must not be asked meanwhile.

    Weights are gathered one at a time. To be entered on all processes at once; nothing happens to models that are not sharded.

    Args:
        models: whose weights.
        accelerator: knows the processes.
        trained: only those that are trained, of which an adapter's files are made.
    """
    places: list[tuple[dict[str, Any], str, Any]] = []
    whole: dict[int, nn.Parameter] = {}
    for model in models:
        for part in _parts(model):
            part.reshard()
        for module in model.modules():
            own: dict[str, Any] = module._parameters
            divided = {name: weight for name, weight in own.items() if isinstance(weight, DTensor)}
            places += [(own, name, w) for name, w in divided.items() if w.requires_grad or not trained]
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
