"""Hidden states of a batch from a decoder, computing a prompt once for all of its completions where that is exact."""

import logging
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from prefopt.policy.compat import WINDOWS, attention_of, is_sharded
from prefopt.policy.rows import flex, verified
from prefopt.policy.rows.attention import NAME, use_segment_attention
from prefopt.policy.rows.layout import Layout, Wanted, packed, padded, single_completions, tree_mask
from prefopt.support.out_of_memory import reraise_out_of_memory
from prefopt.support.profile import counted
from prefopt.types import Batch

log = logging.getLogger(__name__)


class PrefixSharing:
    """Runs a decoder without its head on a batch, with each prompt computed once for all of its completions where possible.

    Three layouts are tried in this order: all rows packed into one, with attention by segments (on GPUs in blocks, `rows.flex`);
    padded rows that share a prompt, with a tree mask; a row for each completion. Whether a layout is exact is checked on the first
    batch, by comparison with completions alone, and again on rows more than twice as long as any compared before (`verified`),
    because some differences, such as a window, appear only in long rows.

    Args:
        wanted: which states.
        padding: a token that is never the end of a completion.
    """

    def __init__(self, wanted: Wanted = "predicting", padding: int | None = None) -> None:
        self.wanted: Wanted = wanted
        self.padding = padding
        self.packs = True
        self.shares = True
        self._compared = 0

    def __call__(self, backbone: Any, batch: Batch) -> Tensor:
        """[M, H], the wanted hidden states: in the order of the batch's mask, or of its completions.

        Args:
            backbone: from `AutoModel`, or the part of a causal LM below its head; the same in every call.
            batch: prompts and completions.
        """
        rows, states = self._rows(backbone, batch), None
        if rows.shared and is_sharded(backbone.parameters()):
            # Processes would compare at different times, and wait for each other's weights.
            self.shares = False
            log.info("%s is sharded: using a row for each completion", type(backbone).__name__)
            rows = self._rows(backbone, batch)
        while rows.shared and len(rows.places) and rows.longest > 2 * self._compared:
            self._compared = verified.longest(_way(backbone, rows))
            if rows.longest > 2 * self._compared:
                states = self._compare(backbone, batch, rows, not (torch.is_grad_enabled() or _draws(backbone)))
                rows = self._rows(backbone, batch)
        counted(rows.tokens)
        return _states(backbone, rows) if states is None else states

    def _rows(self, backbone: Any, batch: Batch) -> Layout:
        device = next(backbone.parameters()).device
        if not self.shares or not all(batch.prompt_ids):
            return self._plain(batch, device)
        if self.packs and use_segment_attention(backbone):
            return packed(batch, device, self.wanted, self.padding)
        if self.packs and flex.use_flex_attention(backbone):
            return flex.packed_in_blocks(batch, device, self.wanted, self.padding)
        width = backbone.config.get_text_config().hidden_size
        return padded(batch, device, width, self.wanted, self.padding)

    def _plain(self, batch: Batch, device: torch.device) -> Layout:
        return padded(batch, device, None, self.wanted, self.padding)

    @torch.no_grad()
    def _compare(self, backbone: Any, batch: Batch, whole: Layout, reuse: bool) -> Tensor | None:
        """Check shared rows on the longest and the shortest of the batch; if they are not exact, give this layout up.

        Returns:
            Where `reuse`, and they are exact: the states of the whole batch, which need not be computed again.
        """
        prompts = [batch.rows(slice(row, row + 1)) for row in range(len(batch))]
        laid_out = {row: self._rows(backbone, one) for row, one in enumerate(prompts) if one.mask.any()}
        sizes = {row: rows.longest for row, rows in laid_out.items() if rows.shared}
        extremes = sorted({max(sizes, key=sizes.__getitem__), min(sizes, key=sizes.__getitem__)})
        reuse = reuse and not isinstance(whole.segments, flex.BlockSegments)  # these take their own gradient
        few, compared = (batch, extremes) if reuse else (batch.rows(torch.tensor(extremes)), range(len(extremes)))
        training = backbone.training
        backbone.eval()  # anything random in training mode would make the two differ
        try:
            mismatch, states = self._mismatch(backbone, few, compared)
        finally:
            backbone.train(training)
        if not mismatch:
            self._compared = whole.longest
            verified.remember(_way(backbone, whole), whole.longest)
            return states if reuse else None
        if whole.segments is not None:
            self.packs, self._compared = False, 0
            log.info("%s cannot attend by segments (%s)", type(backbone).__name__, mismatch)
        else:
            self.shares = False
            log.warning(
                "%s cannot compute a prompt once for several completions (%s): using a row for each",
                type(backbone).__name__,
                mismatch,
            )
        return None

    def _mismatch(self, backbone: Any, batch: Batch, compared: Sequence[int]) -> tuple[str, Tensor | None]:
        """How shared rows differ from plain ones, in words, "" if they agree; and their states.

        Compared are the first and the last completion of these prompts, between which the others lie.
        """
        device = next(backbone.parameters()).device
        try:
            rows = self._rows(backbone, batch)
            states = _states(backbone, rows)
        except (AttributeError, TypeError, ValueError, RuntimeError, KeyError) as error:
            reraise_out_of_memory(error)
            return f"{type(error).__name__}: {error}", None
        alone = [self._plain(one, device) for one in single_completions(batch)]
        parts = states.split([len(row.places) for row in alone])
        numbers = [(prompt, n) for n, prompt in enumerate(batch.present.nonzero()[:, 0].tolist()) if prompt in compared]
        chosen = sorted({*dict(numbers).values(), *dict(reversed(numbers)).values()})
        expected = torch.cat([_states(backbone, alone[n]) for n in chosen]).float()
        actual = torch.cat([parts[n] for n in chosen]).float()
        low = torch.is_autocast_enabled(device.type) or torch.finfo(backbone.dtype).bits < 32
        worst = (expected - actual).abs().max().item()
        if worst > (2**-5 if low else 1e-4) * max(expected.abs().max().item(), 1.0):
            return f"states differ by {worst:.2g}", None
        if isinstance(rows.segments, flex.BlockSegments):
            return self._backward_mismatch(backbone, rows, alone, 2**-4 if low else 1e-3), None
        return "", states

    def _backward_mismatch(self, backbone: Any, rows: Layout, alone: Sequence[Layout], tolerance: float) -> str:
        """The same of gradients."""
        try:
            return flex.backward_differs(backbone, partial(_states, backbone), rows, alone, tolerance)
        except (AttributeError, TypeError, ValueError, RuntimeError, KeyError) as error:
            reraise_out_of_memory(error)
            return f"{type(error).__name__}: {error}"


def _draws(backbone: Any) -> bool:
    """Whether a model has dropout, and it is on."""
    own = backbone.training and getattr(backbone.config.get_text_config(), "attention_dropout", 0)
    return bool(own) or any(isinstance(m, nn.Dropout) and m.training and m.p for m in backbone.modules())


def _way(backbone: Any, rows: Layout) -> tuple[Any, ...]:
    way = "packed" if rows.segments else "masked"
    if isinstance(rows.segments, flex.BlockSegments):  # of a model that is trained, gradients are compared too
        way = "blocks, trained" if any(w.requires_grad for w in backbone.parameters()) else "blocks"
    return verified.key(way, backbone, rows.input_ids.device)


def _states(backbone: Any, rows: Layout) -> Tensor:
    """[M, H]."""
    more: dict[str, Any] = {}
    if rows.shared:
        masks = tree_masks(rows, backbone.config.get_text_config(), backbone.dtype)
        more = {"attention_mask": masks, "position_ids": rows.positions}
        more |= {} if rows.segments is None else {"segments": rows.segments}
    # A causal model does not see right padding; without a mask, attention takes its fast causal path.
    return rows.wanted(backbone(input_ids=rows.input_ids, use_cache=False, **more).last_hidden_state)


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
