"""Private names of libraries that prefopt relies on, each with the version that it was seen in.

Look here first when an upgrade of torch, transformers or peft breaks something.
"""

import warnings
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn.modules.dropout import _DropoutNd  # torch 2.13
from torch.utils._pytree import SUPPORTED_NODES, register_dataclass  # torch 2.13

SCALES = ("logit_scale", "lm_head_multiplier")
DIVISORS = ("logits_scaling",)
CAPS = ("final_logit_softcapping",)
"""Names in configs under which architectures scale, divide or cap logits behind the LM head (transformers 5.23)."""

WINDOWS = ("window_size", "attention_window", "attention_window_size", "attention_chunk_size", "local_attention")
"""Names in configs of ways to attend to a part of a row that a mask does not express (transformers 5.23)."""

UNSUPPORTED_ATTENTION = ("softcap", "s_aux", "position_bias", "head_mask")
"""Arguments by which architectures ask their attention for more than ours can do (transformers 5.23)."""


def is_slow_on_cpu(dtype: torch.dtype) -> bool:
    """Whether attention on this CPU is faster in fp32: in 16 bits without AMX, backward up to twice as fast (torch 2.13, Zen 4)."""
    return dtype in (torch.bfloat16, torch.float16) and not torch.cpu._is_amx_tile_supported()


def switch_off_dropout(model: nn.Module) -> None:
    """Set every dropout layer's probability to 0 (`_DropoutNd` is the base class of them all; torch 2.13)."""
    for module in model.modules():
        if isinstance(module, _DropoutNd):
            module.p = 0.0


def attention_of(config: Any) -> str | None:
    """The name of the attention implementation that a model uses (`_attn_implementation`; transformers 5.23)."""
    name: str | None = getattr(config, "_attn_implementation", None)
    return name


def can_set_attention(model: Any) -> bool:
    """Whether a model looks its attention up by name (`_can_set_attn_implementation`; transformers 5.23)."""
    return bool(model._can_set_attn_implementation())


def flash_attention_cpu(query: Tensor, key: Tensor, value: Tensor, scale: float | None) -> tuple[Tensor, Tensor]:
    """Attention on a CPU, and the logarithm of its normaliser, which the public function does not return (torch 2.13).

    It has no derivative here.
    """
    output, normaliser = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(query, key, value, scale=scale)
    return output, normaliser


def is_sharded(weights: Iterable[Tensor]) -> bool:
    """Whether processes hold parts of them: FSDP2 (DTensor), FSDP1 (`_is_flat_param`, torch 2.13) or ZeRO-3 (`ds_id`)."""
    return any(isinstance(p, DTensor) or {"ds_id", "_is_flat_param"} & vars(p).keys() for p in weights)


def device_of(model: nn.Module) -> torch.device:
    """Where a model computes: of sharded weights, which may be kept elsewhere, the device of their processes."""
    weight = next(model.parameters())
    if not isinstance(weight, DTensor) or weight.device_mesh.device_type == weight.device.type:
        return weight.device
    return torch.device(weight.device_mesh.device_type, torch.accelerator.current_device_index())


def blocks_of(model: Any) -> frozenset[str]:
    """The names of the classes of a model's layers (`_no_split_modules`; transformers 5.23)."""
    return frozenset(getattr(model, "_no_split_modules", None) or ())


def show_tensors_of(kind: type) -> None:
    """Have torch see the tensors in a dataclass, where it goes through what a module returns (`_pytree`; torch 2.13)."""
    if kind not in SUPPORTED_NODES:
        register_dataclass(kind)


def keep_packing_of(layer: Any) -> None:
    """Have a layer of 4 bits keep its weights as they are packed (`support_avx512bf16_for_cpu`; bitsandbytes 0.50).

    On CPUs with AVX512-BF16 it would pack them anew for a kernel that rounds to bf16 as soon as it is asked in evaluation mode, and
    go on with that kernel, which has no gradient, in training (findings/bitsandbytes_cpu_gradients.sh).
    """
    layer.support_avx512bf16_for_cpu = False


def adapter_prefix(model: Any) -> str:
    """What the names of an adapter's weights contain (`prefix` of the tuner; peft 0.21)."""
    prefix: str = getattr(model.base_model, "prefix", "lora_")
    return prefix


def ignore_renamed_checkpointing() -> None:
    """Ignore the warning of transformers 5.23 about the old names for gradient checkpointing, which peft 0.21 uses."""
    for name in ("is_gradient_checkpointing", "gradient_checkpointing_enable"):
        warnings.filterwarnings("ignore", f"`{name}` is deprecated", FutureWarning)
