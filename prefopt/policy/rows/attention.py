"""Attention over prompts and their completions packed into one row: one call for each segment, so nothing masked is computed.

For CPUs, where the overhead of a call is small. On a GPU, where many small calls would be slow, `rows.flex` attends in one.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from prefopt.policy.compat import (
    UNSUPPORTED_ATTENTION,
    attention_of,
    can_set_attention,
    flash_attention_cpu,
    is_slow_on_cpu,
)

NAME = "prefopt"
"""The name of this attention in the configs of models. Without segments it is transformers' `sdpa`."""


BLOCK = 256
"""Tokens of a long segment that attend in one call. What a mask hides is computed all the same; blocks save almost half of that."""


@dataclass(frozen=True)
class Segments:
    """The boundaries of prompts and completions in a packed row.

    Attributes:
        groups: for each prompt, its number of tokens and that of each completion, in the order of the row.
    """

    groups: Sequence[tuple[int, Sequence[int]]]
    _masks: dict[tuple[Any, ...], Tensor] = field(default_factory=dict, repr=False, compare=False)

    @property
    def sizes(self) -> list[int]:
        """Tokens of each segment."""
        return [size for prompt, completions in self.groups for size in (prompt, *completions)]

    def mask(self, before: int, own: int, window: int | None, like: Tensor) -> Tensor:
        """[own, before + own], added to the scores of `own` tokens that follow `before` others; built once for all layers."""
        key = (before, own, window, like.dtype, like.device)
        if key not in self._masks:
            sees = torch.ones(own, before + own, dtype=torch.bool, device=like.device).tril(before)
            if window is not None:
                sees = sees.triu(before - window + 1)
            blank = torch.zeros(sees.shape, dtype=like.dtype, device=like.device)
            self._masks[key] = blank.masked_fill_(~sees, torch.finfo(like.dtype).min)
        return self._masks[key]


class Continued(NamedTuple):
    """Prompts of one length that equally many rows continue, which attend in one call.

    Attributes:
        length: the number of their length.
        prompts: [P], their numbers among those of the length; None for all.
        rows: [P, R], the rows that continue each.
    """

    length: int
    prompts: Tensor | None
    rows: Tensor


class Prompts:
    """Keys and values of prompts that rows continue.

    Args:
        layers: of each layer, keys and values [P, kv heads, L, D], right-aligned.
        lengths: of the prompts, in tokens.
        owner: [N] int64, the prompt that each row continues.
    """

    def __init__(self, layers: Iterable[tuple[Tensor, Tensor]], lengths: Sequence[int], owner: Tensor):
        sizes = sorted(set(lengths))
        self.groups = [torch.tensor([p for p, n in enumerate(lengths) if n == size]) for size in sizes]
        self.layers = [
            [tuple(part[group, :, -size:] for part in layer) for group, size in zip(self.groups, sizes, strict=True)]
            for layer in layers
        ]
        self.follow(owner)

    def follow(self, owner: Tensor) -> None:
        """Go on with rows that continue these prompts, [N], in ascending order."""
        counts = owner.bincount(minlength=sum(map(len, self.groups)))
        begins = counts.cumsum(0) - counts
        self.parts: list[Continued] = []
        for number, group in enumerate(self.groups):
            for count in sorted({*counts[group].tolist()} - {0}):
                own = (counts[group] == count).nonzero()[:, 0]
                rows = begins[group[own], None] + torch.arange(count)
                self.parts.append(Continued(number, None if len(own) == len(group) else own, rows))
        self.order = torch.cat([part.rows.flatten() for part in self.parts]).argsort()

    def attend(self, layer: int, query: Tensor, scaling: float | None) -> tuple[Tensor, Tensor]:
        """What each row's prompt says to it, [N, kv heads, queries, D], and the logarithm of its normaliser."""
        outputs: list[tuple[Tensor, Tensor]] = []
        for length, prompts, rows in self.parts:
            keys, values = (part if prompts is None else part[prompts] for part in self.layers[layer][length])
            queries = query[rows].transpose(1, 2).flatten(2, 3)  # of one prompt they are positions
            seen, log = flash_attention_cpu(queries, keys, values, scaling)
            both = (part.unflatten(2, (rows.shape[1], -1)).transpose(1, 2).flatten(0, 1) for part in (seen, log))
            outputs.append((next(both), next(both)))
        seen, log = (torch.cat(parts)[self.order] for parts in zip(*outputs, strict=True))
        return seen, log


def segment_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    segments: Segments | None = None,
    prompts: Prompts | None = None,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """[1, T, heads, D]: a prompt's tokens attend to those before them; a completion's to the prompt and those before them.

    Args:
        module: the attention layer.
        query: [1, heads, T, D].
        key: [1, heads or fewer, T, D].
        value: like `key`.
        attention_mask: ignored where there are segments.
        segments: of the row; None is `sdpa`.
        prompts: that N rows continue by one token each, query [N, heads, 1, D]; keys and values are of what follows the prompts.
        dropout: of attention probabilities.
        scaling: of scores; None is 1/√D.
        sliding_window: how many tokens back a token attends, itself included; None is all.
        others: further arguments of the architecture.

    Raises:
        ValueError: it asks for a kind of attention that is not this one.
    """
    if prompts is not None:
        refuse_others({**others, "sliding_window": sliding_window})
        return _after_prompts(module, query, key, value, prompts, scaling), None
    if segments is None:
        others["sliding_window"] = sliding_window
        return sdpa_attention_forward(module, query, key, value, attention_mask, dropout, scaling, **others)
    refuse_others(others)
    attend = partial(_attend, segments, sliding_window, dropout=dropout, scale=scaling)
    low = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else query.dtype
    if is_slow_on_cpu(low):
        with torch.autocast("cpu", enabled=False):
            output = _by_segments(attend, segments, query.float(), key.float(), value.float()).to(low)
    else:
        output = _by_segments(attend, segments, query, key, value)
    return output.transpose(1, 2), None


def _by_segments(
    attend: Callable[[Tensor, Tensor, Tensor], Tensor], segments: Segments, query: Tensor, key: Tensor, value: Tensor
) -> Tensor:
    """[1, heads, T, D]."""
    copies = query.shape[1] // key.shape[1]
    # The backward pass of `split` is one concatenation; slices would each fill a whole row with zeros.
    queries, keys, values = (
        iter(whole.split(segments.sizes, 2)) for whole in (query, repeat_kv(key, copies), repeat_kv(value, copies))
    )
    outputs = []
    for _, completions in segments.groups:
        keys_before, values_before = next(keys), next(values)
        outputs.append(attend(next(queries), keys_before, values_before))
        for _ in completions:
            seen = (torch.cat([one, next(rest)], 2) for one, rest in ((keys_before, keys), (values_before, values)))
            outputs.append(attend(next(queries), *seen))
    return torch.cat(outputs, 2)


def _attend(
    segments: Segments,
    window: int | None,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    dropout: float,
    scale: float | None,
) -> Tensor:
    """Attention of a segment, [1, heads, n, D], whose keys and values are those of what it follows and then its own."""
    own, length = query.shape[2], key.shape[2]
    attend = partial(nn.functional.scaled_dot_product_attention, dropout_p=dropout, scale=scale)
    if own == length and (window is None or own <= window):
        return attend(query, key, value, is_causal=True)
    blocks = []
    before = length - own
    for part in query.split(BLOCK if own >= 2 * BLOCK else own, 2):
        seen = before + part.shape[2]
        mask = segments.mask(before, part.shape[2], window, query)
        blocks.append(attend(part, key[:, :, :seen], value[:, :, :seen], mask))
        before = seen
    return torch.cat(blocks, 2) if len(blocks) > 1 else blocks[0]


def refuse_others(others: Mapping[str, Any]) -> None:
    """Raise ValueError where an architecture asks for a kind of attention that this one is not."""
    if unknown := [name for name in (*UNSUPPORTED_ATTENTION, "sliding_window") if others.get(name) is not None]:
        raise ValueError(f"its attention has {unknown[0]}")


def _after_prompts(
    module: Any, query: Tensor, key: Tensor, value: Tensor, prompts: Prompts, scaling: float | None
) -> Tensor:
    """[N, 1, heads, D]: attention to a row's prompt and to what follows it, combined by their normalisers."""
    rows, heads, _, size = query.shape
    grouped = query.view(rows, key.shape[1], heads // key.shape[1], size)  # queries that share keys become positions
    own, own_log = flash_attention_cpu(grouped, key, value, scaling)
    before, before_log = prompts.attend(module.layer_idx, grouped, scaling)
    share = torch.sigmoid(before_log - own_log)[..., None].to(own.dtype)
    return (share * before + (1 - share) * own).view(rows, 1, heads, size)


def use_segment_attention(backbone: PreTrainedModel) -> bool:
    """Let a model on a CPU that uses `sdpa` use this attention instead; returns whether it does now.

    It is not switched back, because gradient checkpointing attends again in the backward pass; without segments nothing changes.
    """
    if backbone.device.type != "cpu":  # a model that was moved keeps the name, which means `sdpa` there
        return False
    name = attention_of(backbone.config.get_text_config())
    if name == "sdpa" and can_set_attention(backbone):
        backbone.set_attn_implementation(NAME)
        return True
    return name == NAME


AttentionInterface.register(NAME, segment_attention)
AttentionMaskInterface.register(NAME, sdpa_mask)
