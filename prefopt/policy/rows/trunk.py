"""Reading a batch with a decoder: the hidden states that predict its tokens, from the rows that cost least."""

import logging
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from prefopt.policy.rows.attention import NAME, attends_by_segments
from prefopt.policy.rows.layout import Rows, completions_alone, lay, pack, tree_mask
from prefopt.support.profile import counted
from prefopt.types import Batch

log = logging.getLogger(__name__)

WINDOWS = ("window_size", "attention_window", "attention_window_size", "attention_chunk_size", "local_attention")
"""Names in configs under which an architecture looks at part of a row in a way that a tree mask does not reach."""


EXACT: dict[tuple[Any, ...], int] = {}
"""The longest rows that were found exact in this process, by what decides it: one comparison serves all runs of a study."""


class Trunk:
    """A decoder without its head, which computes a prompt once for all of its completions where it can.

    By packing them into one row where attention can go by segments, else in padded rows with a mask, else in a row for each
    completion. Whether a way is exact is found out on the first batch, by comparing with each completion alone; and again on rows
    more than twice as long as any compared before, because some differences, like a window, show in long rows only.
    """

    def __init__(self) -> None:
        self.packs = True
        self.shares = True
        self._compared = 0

    def __call__(self, backbone: Any, batch: Batch) -> Tensor:
        """[M, H], the states that predict the tokens of the batch's mask, in order.

        Args:
            backbone: from `AutoModel`, or the part of a causal LM under its head; always the same.
            batch: to be read.
        """
        rows = self._rows(backbone, batch)
        if rows.shared and _sharded(backbone):
            self.shares = False  # processes would compare at different times, and wait for each other's weights
            log.warning("%s is sharded: using a row for each completion", type(backbone).__name__)
            rows = self._rows(backbone, batch)
        while rows.shared and rows.longest > 2 * self._compared:
            self._compared = EXACT.get(_kind(backbone, rows), 0)
            if rows.longest > 2 * self._compared:
                self._compare(backbone, batch, rows)
                rows = self._rows(backbone, batch)
        counted(rows.tokens)
        return _states(backbone, rows)

    def _rows(self, backbone: Any, batch: Batch) -> Rows:
        device = next(backbone.parameters()).device
        if not self.shares:
            return lay(batch, device)
        if self.packs and attends_by_segments(backbone):
            return pack(batch, device)
        return lay(batch, device, backbone.config.get_text_config().hidden_size)

    @torch.no_grad()
    def _compare(self, backbone: Any, batch: Batch, whole: Rows) -> None:
        """Find out whether shared rows are exact, on the longest and the shortest of the batch; if not, go on without this way."""
        alone = [batch.rows(slice(row, row + 1)) for row in range(len(batch))]
        sizes = {row: rows.longest for row, one in enumerate(alone) if (rows := self._rows(backbone, one)).shared}
        few = batch.rows(torch.tensor([max(sizes, key=sizes.__getitem__), min(sizes, key=sizes.__getitem__)]))
        rows = self._rows(backbone, few)
        training = backbone.training
        backbone.eval()  # whatever is random in training would make the two differ
        try:
            doubt = _doubt(backbone, few, rows)
        finally:
            backbone.train(training)
        if not doubt:
            self._compared = EXACT[_kind(backbone, whole)] = whole.longest
        elif rows.segments is not None:
            self.packs, self._compared = False, 0
            log.info("%s cannot attend by segments (%s)", type(backbone).__name__, doubt)
        else:
            self.shares = False
            log.warning(
                "%s cannot compute a prompt once for several completions (%s): using a row for each",
                type(backbone).__name__,
                doubt,
            )


def _kind(backbone: Any, rows: Rows) -> tuple[Any, ...]:
    return "packed" if rows.segments else "masked", *kind_of(backbone, rows.input_ids.device)


def kind_of(backbone: Any, device: torch.device) -> tuple[Any, ...]:
    """All that decides whether a way to compute is exact for a model, but for the lengths of its rows."""
    config = {key: value for key, value in backbone.config.to_dict().items() if key != "_name_or_path"}
    low = torch.get_autocast_dtype(device.type) if torch.is_autocast_enabled(device.type) else None
    return type(backbone), str(config), backbone.dtype, device.type, low


def _doubt(backbone: Any, batch: Batch, rows: Rows) -> str:
    """What is wrong with shared rows; nothing if they can be used."""
    device = rows.input_ids.device
    try:
        found = _states(backbone, rows).float()
    except (AttributeError, TypeError, ValueError, RuntimeError, KeyError) as error:
        return f"{type(error).__name__}: {error}"
    expected = torch.cat([_states(backbone, lay(one, device)) for one in completions_alone(batch)]).float()
    low = torch.is_autocast_enabled(device.type) or torch.finfo(backbone.dtype).bits < 32
    tolerance = (2**-5 if low else 1e-4) * max(expected.abs().max().item(), 1.0)
    worst = (expected - found).abs().max().item()
    return "" if worst <= tolerance else f"states differ by {worst:.2g}"


def _sharded(backbone: Any) -> bool:
    """Whether processes hold parts of the weights, under FSDP or ZeRO-3."""
    return any(
        isinstance(p, DTensor) or hasattr(p, "ds_id") or hasattr(p, "_is_flat_param") for p in backbone.parameters()
    )


def _states(backbone: Any, rows: Rows) -> Tensor:
    if not rows.shared:
        # Right padding is invisible to a causal model; without a mask, attention takes its fast causal path.
        output = backbone(input_ids=rows.input_ids, use_cache=False)
        return rows.predicting(output.last_hidden_state)
    told: dict[str, Any] = {} if rows.segments is None else {"segments": rows.segments}
    masks = tree_masks(rows, backbone.config.get_text_config(), backbone.dtype)
    output = backbone(
        input_ids=rows.input_ids, attention_mask=masks, position_ids=rows.positions, use_cache=False, **told
    )
    return rows.predicting(output.last_hidden_state)


def refuse_windows(config: Any) -> None:
    """Raise ValueError where an architecture looks at a part of a row that its attention is not told of."""
    if odd := [name for name in WINDOWS if getattr(config, name, None)]:
        raise ValueError(f"its attention has {odd[0]}")


def tree_masks(rows: Rows, config: Any, dtype: torch.dtype) -> Tensor | dict[str, Tensor]:
    """The masks of shared rows as this architecture takes them: one, or one for each type of layer.

    Of a packed row nothing but its shape is looked at: four dimensions, as of a mask that is to be taken as it is.

    Raises:
        ValueError: its attention is of a kind that a mask does not describe.
    """
    if config._attn_implementation not in ("eager", "sdpa", NAME):
        raise ValueError(f"{config._attn_implementation} attention takes no mask of its own")
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
