"""Attention over a packed row on a GPU: FlexAttention (torch 2.13), in memory that grows with the row, not with its square.

A mask [L, L] is never made. What a token sees is a function of three numbers of each token, compiled into the kernel, and a table
of blocks of 128 × 128 pairs says which of them hold anything to compute. The table follows from the lengths of the segments, so it
is made on the host, and nothing waits for the device.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import accumulate, pairwise
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask, flex_attention
from torch.nn.functional import pad
from transformers import AttentionInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from prefopt.policy.compat import attention_of, can_set_attention
from prefopt.policy.rows.attention import Segments, refuse_others
from prefopt.policy.rows.layout import Layout, Wanted, packed
from prefopt.support.sending import sent
from prefopt.types import Batch

NAME = "prefopt_flex"
"""The name of this attention in the configs of models. Without such segments it is transformers' `sdpa`."""

BLOCK = 128
"""Tokens on the side of a block; rows are padded to a multiple of it, at least to two, because torch compiles anew for one."""

COMPILING: dict[str, Any] = {"dynamic": True, "recompile_limit": 64}
"""One kernel serves rows of all lengths. There are others for windows and for passes without gradient, and beyond torch's limit of
8 it would compute all scores [L, L], without a word."""

DEVICES = ("cuda",)
"""Devices on which rows are packed this way; on CPUs torch 2.13 refuses the backward pass."""


class Span(NamedTuple):
    """A segment: tokens `start` to `end` of a row, at positions `start + shift` and on.

    Attributes:
        prompt: its number in the row; −1 is padding.
        branch: 0 is the prompt itself, k its k-th completion.
    """

    start: int
    end: int
    shift: int
    prompt: int
    branch: int


@dataclass(frozen=True)
class BlockSegments(Segments):
    """Segments of a row that is read in blocks.

    Attributes:
        length: L, of the row with its padding.
    """

    length: int = 0

    def spans(self) -> list[Span]:
        """All segments in order, the padding last."""
        spans, start = [], 0
        for number, (prompt, completions) in enumerate(self.groups):
            ends = list(accumulate((prompt, *completions), initial=start))
            spans.append(Span(start, ends[1], -start, number, 0))
            for branch, (begin, end) in enumerate(pairwise(ends[1:]), 1):
                spans.append(Span(begin, end, prompt - begin, number, branch))
            start = ends[-1]
        return [*spans, Span(start, self.length, -start, -1, 0)] if start < self.length else spans

    def block_mask(self, window: int | None, device: torch.device) -> BlockMask:
        """What each token sees: earlier tokens of its own segment and of its prompt, and of these the last `window`.

        It is made once for all layers.
        """
        key = ("blocks", window, device)
        if key not in self._masks:
            self._masks[key] = self._block_mask(window, device)  # type: ignore[assignment]
        return self._masks[key]  # type: ignore[return-value]

    def _block_mask(self, window: int | None, device: torch.device) -> BlockMask:
        spans = self.spans()
        sizes = [span.end - span.start for span in spans]
        columns = [[span.prompt for span in spans], [span.branch for span in spans], [span.shift for span in spans]]
        prompt, branch, shift = np.repeat(np.array(columns, np.int32), sizes, 1)
        numbers = np.stack([prompt, branch, shift + np.arange(self.length, dtype=np.int32)])
        of_prompt, of_branch, position = sent(torch.from_numpy(numbers), device)
        some, all_ = self.blocks(window)

        def sees(_: Tensor, __: Tensor, query: Tensor, key: Tensor) -> Tensor:
            related = (of_prompt[query] == of_prompt[key]) & (
                (of_branch[key] == 0) | (of_branch[key] == of_branch[query])
            )
            near = (query >= key) & related
            return near if window is None else near & (position[query] - position[key] < window)

        partly, which, wholly, of_these = (
            sent(torch.from_numpy(table)[None, None], device) for table in (*_listed(some & ~all_), *_listed(all_))
        )
        return BlockMask.from_kv_blocks(partly, which, wholly, of_these, BLOCK_SIZE=BLOCK, mask_mod=sees)

    def blocks(self, window: int | None) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """[L/128, L/128] each: blocks in which some query sees some key, and those in which each sees all."""
        count = self.length // BLOCK
        some, pairs = np.zeros((count, count), bool), np.zeros((count, count), np.int64)
        prompts: dict[int, Span] = {}
        for span in self.spans():
            prompts.setdefault(span.prompt, span)
            for seen in {span, prompts[span.prompt]}:
                place, partly, wholly = _seen(span, seen, window)
                some[place] |= partly
                pairs[place] += wholly
        return some, pairs == BLOCK**2


def _seen(
    queries: Span, keys: Span, window: int | None
) -> tuple[tuple[slice, slice], NDArray[np.bool_], NDArray[np.int64]]:
    """Which blocks two segments have in common, whether something is seen there, and how many pairs if each query sees each key.

    The distances between the queries and the keys of a block are all whole numbers from the least to the largest, so that looking
    at these two is exact.
    """
    (rows, first, last), (columns, first_key, last_key) = _parts(queries), _parts(keys)
    least = (first[:, None] - last_key) + queries.shift - keys.shift
    most = (last[:, None] - first_key) + queries.shift - keys.shift
    pairs = (last - first + 1)[:, None] * (last_key - first_key + 1)
    limit = np.inf if window is None else window
    partly = (last[:, None] >= first_key) & (least < limit)
    return (rows, columns), partly, pairs * ((first[:, None] >= last_key) & (most < limit))


def _parts(span: Span) -> tuple[slice, NDArray[np.int64], NDArray[np.int64]]:
    """The blocks in which a segment lies, and its first and last token in each."""
    blocks = slice(span.start // BLOCK, -(-span.end // BLOCK))
    starts = np.arange(blocks.start, blocks.stop) * BLOCK
    return blocks, np.maximum(starts, span.start), np.minimum(starts + BLOCK, span.end) - 1


def _listed(table: NDArray[np.bool_]) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Of a table of blocks, how many each row has, and their numbers before those of the others."""
    return table.sum(1, dtype=np.int32), np.argsort(~table, 1, kind="stable").astype(np.int32)


def packed_in_blocks(
    batch: Batch, device: torch.device, wanted: Wanted = "predicting", padding: int | None = None
) -> Layout:
    """`packed`, padded on the right to a multiple of `BLOCK`.

    Args:
        batch: B prompts × K completions.
        device: of the result.
        wanted: which states.
        padding: a token that is never the end of a completion; None for none.

    Raises:
        ValueError: a prompt without tokens.
    """
    rows = packed(batch, torch.device("cpu"), wanted, padding)
    assert rows.segments is not None
    assert rows.positions is not None
    tokens = rows.input_ids.shape[1]
    length = max(2, -(-tokens // BLOCK)) * BLOCK
    more = length - tokens
    return replace(
        rows,
        input_ids=pad(rows.input_ids, (0, more)),
        attention_mask=pad(rows.attention_mask, (0, more)),
        positions=pad(rows.positions, (0, more)),
        segments=BlockSegments(rows.segments.groups, length=length),
    ).to(device)


def flex_segment_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    segments: Segments | None = None,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """[1, L, heads, D]: like `segment_attention`, whose arguments it has, in one call for the whole row.

    Raises:
        ValueError: it asks for a kind of attention that is not this one.
    """
    if not isinstance(segments, BlockSegments):
        others["sliding_window"] = sliding_window
        return sdpa_attention_forward(module, query, key, value, attention_mask, dropout, scaling, **others)
    refuse_others(others)
    if dropout:
        raise ValueError("its attention has dropout")
    kind = query.device.type
    if torch.is_autocast_enabled(
        kind
    ):  # as `scaled_dot_product_attention` does: some norms return more bits than they get
        dtype = torch.get_autocast_dtype(kind)
        query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
    attend = flex_attention if kind == "cpu" else _compiled()
    mask = segments.block_mask(sliding_window, query.device)
    output: Any = attend(query, key, value, block_mask=mask, scale=scaling, enable_gqa=query.shape[1] != key.shape[1])
    return output.transpose(1, 2).contiguous(), None


@cache
def _compiled() -> Any:
    """FlexAttention as a kernel; called as it is, it computes all scores [L, L]."""
    return torch.compile(flex_attention, **COMPILING)


def use_flex_attention(backbone: PreTrainedModel) -> bool:
    """Let a model on a GPU that uses `sdpa` use this attention instead; returns whether it does now.

    As `use_segment_attention` it is not switched back.
    """
    if backbone.device.type not in DEVICES:
        return False
    config = backbone.config.get_text_config()
    if any(value for name, value in vars(config).items() if re.search(r"att\w*drop", name)):
        return False  # it has no dropout, and the comparison with plain rows is made without
    if attention_of(config) == "sdpa" and can_set_attention(backbone):
        backbone.set_attn_implementation(NAME)
        return True
    return attention_of(config) == NAME


def backward_differs(
    backbone: Any,
    states: Callable[[Layout], Tensor],
    rows: Layout,
    alone: Sequence[Layout],
    tolerance: float,
) -> str:
    """How the gradient of packed rows differs from that of plain ones, in words; "" if they agree or the model is not trained.

    The backward pass is a kernel of its own, which may need more than a GPU has where the forward pass does not. The gradient is
    that of a vector added to every token's embedding, so nothing of the size of the weights is made.

    Args:
        backbone: a decoder.
        states: [M, H] of a layout.
        rows: packed.
        alone: the same completions, each in a plain row, in order.
        tolerance: of the difference, relative to the gradient's norm.
    """
    if not any(weight.requires_grad for weight in backbone.parameters()):
        return ""
    width, device = backbone.config.get_text_config().hidden_size, rows.input_ids.device
    draw = torch.Generator().manual_seed(0)
    weights = [torch.randn(len(row.places), width, generator=draw).to(device) for row in alone]
    probe = torch.zeros(width, device=device, requires_grad=True)

    def gradient(layout: Layout, weights: Tensor) -> Tensor:
        return torch.autograd.grad((states(layout).float() * weights).sum(), probe)[0]

    hook = backbone.get_input_embeddings().register_forward_hook(lambda _, __, output: output + probe.to(output.dtype))
    try:
        with torch.enable_grad():
            found = gradient(rows, torch.cat(weights))
            expected = sum((gradient(*one) for one in zip(alone, weights, strict=True)), torch.zeros_like(probe))
    finally:
        hook.remove()
    worst = ((found - expected).norm() / expected.norm()).item()
    return "" if worst <= tolerance else f"gradients differ by {worst:.2g} of their norm"


AttentionInterface.register(NAME, flex_segment_attention)
AttentionMaskInterface.register(NAME, sdpa_mask)
