"""Hidden states of a batch from a decoder, computing a prompt once for all of its completions where that is exact."""

import logging
from functools import partial
from typing import Any

import torch
from torch import Tensor

from prefopt.policy.compat import WINDOWS, attention_of, is_sharded
from prefopt.policy.rows import flex
from prefopt.policy.rows.attention import NAME, use_segment_attention
from prefopt.policy.rows.layout import Layout, packed, padded, single_completions, tree_mask
from prefopt.support.out_of_memory import reraise_out_of_memory
from prefopt.support.profile import counted
from prefopt.types import Batch

log = logging.getLogger(__name__)

VERIFIED: dict[tuple[Any, ...], int] = {}
"""The longest rows that were found exact in this process, by `numerics_key`: one comparison serves all runs of a study."""


class PrefixSharing:
    """Runs a decoder without its head on a batch, with each prompt computed once for all of its completions where possible.

    Three layouts are tried in this order: all rows packed into one, with attention by segments (on GPUs in blocks, `rows.flex`);
    padded rows that share a prompt, with a tree mask; a row for each completion. Whether a layout is exact is checked on the first
    batch, by comparison with each completion alone, and again on rows more than twice as long as any compared before, because some
    differences, such as a window, appear only in long rows.
    """

    def __init__(self) -> None:
        self.packs = True
        self.shares = True
        self._compared = 0

    def __call__(self, backbone: Any, batch: Batch) -> Tensor:
        """[M, H], the hidden states that predict the tokens of the batch's mask, in order.

        Args:
            backbone: from `AutoModel`, or the part of a causal LM below its head; the same in every call.
            batch: prompts and completions.
        """
        rows = self._rows(backbone, batch)
        if rows.shared and is_sharded(backbone.parameters()):
            # Processes would compare at different times, and wait for each other's weights.
            self.shares = False
            log.info("%s is sharded: using a row for each completion", type(backbone).__name__)
            rows = self._rows(backbone, batch)
        while rows.shared and rows.longest > 2 * self._compared:
            self._compared = VERIFIED.get(_layout_key(backbone, rows), 0)
            if rows.longest > 2 * self._compared:
                self._compare(backbone, batch, rows)
                rows = self._rows(backbone, batch)
        counted(rows.tokens)
        return _states(backbone, rows)

    def _rows(self, backbone: Any, batch: Batch) -> Layout:
        device = next(backbone.parameters()).device
        if not self.shares:
            return padded(batch, device)
        if self.packs and use_segment_attention(backbone):
            return packed(batch, device)
        if self.packs and flex.use_flex_attention(backbone):
            return flex.packed_in_blocks(batch, device)
        return padded(batch, device, backbone.config.get_text_config().hidden_size)

    @torch.no_grad()
    def _compare(self, backbone: Any, batch: Batch, whole: Layout) -> None:
        """Check shared rows on the longest and the shortest of the batch; if they are not exact, give this layout up."""
        prompts = [batch.rows(slice(row, row + 1)) for row in range(len(batch))]
        sizes = {row: rows.longest for row, one in enumerate(prompts) if (rows := self._rows(backbone, one)).shared}
        extremes = batch.rows(torch.tensor([max(sizes, key=sizes.__getitem__), min(sizes, key=sizes.__getitem__)]))
        rows = self._rows(backbone, extremes)
        training = backbone.training
        backbone.eval()  # anything random in training mode would make the two differ
        try:
            mismatch = _mismatch(backbone, extremes, rows)
        finally:
            backbone.train(training)
        if not mismatch:
            self._compared = VERIFIED[_layout_key(backbone, whole)] = whole.longest
        elif rows.segments is not None:
            self.packs, self._compared = False, 0
            log.info("%s cannot attend by segments (%s)", type(backbone).__name__, mismatch)
        else:
            self.shares = False
            log.warning(
                "%s cannot compute a prompt once for several completions (%s): using a row for each",
                type(backbone).__name__,
                mismatch,
            )


def _layout_key(backbone: Any, rows: Layout) -> tuple[Any, ...]:
    return "packed" if rows.segments else "masked", *numerics_key(backbone, rows.input_ids.device)


def numerics_key(backbone: Any, device: torch.device) -> tuple[Any, ...]:
    """Everything but the lengths of rows that decides whether a way to compute is exact for a model."""
    config = {key: value for key, value in backbone.config.to_dict().items() if key != "_name_or_path"}
    low = torch.get_autocast_dtype(device.type) if torch.is_autocast_enabled(device.type) else None
    return type(backbone), str(config), backbone.dtype, device.type, low


def _mismatch(backbone: Any, batch: Batch, rows: Layout) -> str:
    """How shared rows differ from plain ones, in words; "" if they agree."""
    device = rows.input_ids.device
    alone = [padded(one, device) for one in single_completions(batch)]
    low = torch.is_autocast_enabled(device.type) or torch.finfo(backbone.dtype).bits < 32
    expected = torch.cat([_states(backbone, one) for one in alone]).float()
    try:
        worst = (expected - _states(backbone, rows).float()).abs().max().item()
        if worst > (2**-5 if low else 1e-4) * max(expected.abs().max().item(), 1.0):
            return f"states differ by {worst:.2g}"
        if isinstance(rows.segments, flex.BlockSegments):
            states = partial(_states, backbone)
            return flex.backward_differs(backbone, states, rows, alone, 2**-4 if low else 1e-3)
    except (AttributeError, TypeError, ValueError, RuntimeError, KeyError) as error:
        reraise_out_of_memory(error)
        return f"{type(error).__name__}: {error}"
    return ""


def _states(backbone: Any, rows: Layout) -> Tensor:
    if not rows.shared:
        # A causal model does not see right padding; without a mask, attention takes its fast causal path.
        output = backbone(input_ids=rows.input_ids, use_cache=False)
        return rows.predicting(output.last_hidden_state)
    more: dict[str, Any] = {} if rows.segments is None else {"segments": rows.segments}
    masks = tree_masks(rows, backbone.config.get_text_config(), backbone.dtype)
    output = backbone(
        input_ids=rows.input_ids, attention_mask=masks, position_ids=rows.positions, use_cache=False, **more
    )
    return rows.predicting(output.last_hidden_state)


def refuse_windows(config: Any) -> None:
    """Raise ValueError if an architecture attends to a part of a row in a way that masks and segments do not express."""
    if windows := [name for name in WINDOWS if getattr(config, name, None)]:
        raise ValueError(f"its attention has {windows[0]}")


def tree_masks(rows: Layout, config: Any, dtype: torch.dtype) -> Tensor | dict[str, Tensor]:
    """The masks of shared rows as this architecture takes them: one, or one for each type of layer.

    For a packed row only the number of dimensions matters: four, as of a mask that is to be used as it is.

    Raises:
        ValueError: its attention is of a kind that a mask does not describe.
    """
    if attention_of(config) not in ("eager", "sdpa", NAME, flex.NAME):
        raise ValueError(f"{attention_of(config)} attention takes no mask of its own")
    refuse_windows(config)
    window = getattr(config, "sliding_window", None)
    kinds = sorted(set(getattr(config, "layer_types", None) or ()))
    windows = {"full_attention": None, "sliding_attention": window}
    if unknown := [kind for kind in kinds if kind not in windows]:
        raise ValueError(f"it has layers of {unknown[0]}")

    def mask(window: int | None) -> Tensor:
        return torch.zeros(1, 1, 1, 1, dtype=dtype) if rows.segments else tree_mask(rows, dtype, window)

    if len(kinds) > 1:
        return {kind: mask(windows[kind]) for kind in kinds}
    return mask(windows[kinds[0]] if kinds else window)
