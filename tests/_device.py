"""A device that is none: tensors that say they are elsewhere, and a list of what the host waited for.

Numbers are computed on the CPU. As on a GPU, an operation takes tensors of one device, single numbers apart, and some answers are
only known to the host once the device is done: numbers and lists of a tensor, copies of it, how many places of a mask are True.
"""

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

ELSEWHERE = torch.device("meta")
"""A name that torch knows; nothing of what it does with tensors without numbers is used."""

aten = torch.ops.aten
COUNTS = {aten.nonzero, aten.masked_select, aten.masked_scatter_backward, aten._unique2, aten.unique_dim, aten.bincount}
NUMBERS = {aten._local_scalar_dense, aten.equal}


class Held(Tensor):
    """A tensor on the device."""

    inner: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor) -> "Held":
        held = Tensor._make_wrapper_subclass(
            cls,
            inner.shape,
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device=ELSEWHERE,
        )
        held.inner = inner
        return held

    __torch_function__ = torch._C._disabled_torch_function_impl  # torch 2.13

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise AssertionError(f"{func} outside of the device")

    def tolist(self) -> Any:
        """The device has to be done."""
        Elsewhere.running.waited.append("tolist")
        return self.inner.tolist()


class Elsewhere(TorchDispatchMode):
    """The device, while it is there.

    Attributes:
        waited: what the host waited for, by name.
    """

    running: "Elsewhere"

    def __init__(self) -> None:
        super().__init__()
        self.waited: list[str] = []
        Elsewhere.running = self

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, name = kwargs or {}, func.overloadpacket
        tensors: list[Tensor] = []

        def opened(value: Any) -> Any:
            if isinstance(value, Tensor):
                tensors.append(value)
                return value.inner if isinstance(value, Held) else value
            return torch.device("cpu") if isinstance(value, torch.device) else value

        to = kwargs.get("device")
        opened_args, opened_kwargs = tree_map(opened, args), tree_map(opened, kwargs)
        held = any(isinstance(tensor, Held) for tensor in tensors)
        leaves = held and to is not None and torch.device(to) != ELSEWHERE
        if name is not aten.copy_ and held and any(not isinstance(t, Held) and t.ndim for t in tensors):
            raise RuntimeError(f"{func} of tensors on two devices")
        masks = name in (aten.index, aten.index_put, aten.index_put_) and any(
            index is not None and index.dtype == torch.bool for index in args[1]
        )
        copies = name is aten.copy_ and held and not isinstance(args[0], Held)
        if held and (leaves or masks or copies or name in COUNTS | NUMBERS):
            self.waited.append(str(func))
        output = func(*opened_args, **opened_kwargs)
        if leaves or name in NUMBERS or not (held or (to is not None and torch.device(to) == ELSEWHERE)):
            return output
        same = {id(tensor.inner): tensor for tensor in tensors if isinstance(tensor, Held)}  # of operations in place

        def wrapped(value: Any) -> Any:
            return same.get(id(value)) if id(value) in same else Held(value) if isinstance(value, Tensor) else value

        return tree_map(wrapped, output)
