"""Rows that are written in turns: what was read so far stays read, or a sampler reads it again."""

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn.functional import pad

from prefopt.policy.decode.drawing import DrawnTokens, draw_rows
from prefopt.policy.decode.growing import GrowingLayer, growing_cache
from prefopt.policy.decode.noise import GOLDEN, mix, row_keys
from prefopt.policy.decode.reading import Reading
from prefopt.policy.decode.stops import StopTexts
from prefopt.policy.parallel import check_sampled
from prefopt.policy.policy import Policy
from prefopt.recipe import Sampling
from prefopt.types import Sampled

TURN = 0xD1B54A32D192ED03 - (1 << 64)
"""Added to a row's seed for each turn: an odd constant other than `GOLDEN`, so that turns and completions do not meet."""


class Conversation(Protocol):
    """N rows that begin with their prompts."""

    def turn(
        self, rows: Sequence[int], read: Sequence[Sequence[int]], most: Sequence[int], turn: int
    ) -> list[DrawnTokens]:
        """Write a turn of some of the rows.

        Args:
            rows: their numbers, ascending.
            read: what each of them reads first: what the environment answered; nothing in the first turn.
            most: tokens of each, at most.
            turn: its number, from 0 on, of which the noise is a function.
        """
        ...


def turn_seeds(seeds: Tensor, turn: int) -> Tensor:
    """[N] int64, the seed of each row's noise in a turn; in the first it is the row's own, as of a completion of one turn."""
    return seeds if turn == 0 else mix(seeds + torch.full_like(seeds, turn) * TURN)


def row_seeds(seeds: Tensor, completions: int) -> Tensor:
    """[B·K] int64: what makes completion 0 of a row draw the noise of completion k of its prompt, whose seeds are [B]."""
    return (seeds[:, None] + torch.arange(completions) * GOLDEN).flatten()


class Rereading:
    """A `Conversation` by any sampler: it reads each row from its beginning at every turn.

    Args:
        sampler: draws one completion of each row.
        model: from what.
        prompts: N rows.
        seeds: [N] int64, of their noise.
        settings: the recipe's.
        stop: texts that end a turn; what a sampler wrote behind one is cut off.
    """

    def __init__(
        self,
        sampler: Any,
        model: Any,
        prompts: Sequence[Sequence[int]],
        seeds: Tensor,
        settings: Sampling,
        stop: StopTexts,
    ):
        self.sampler, self.model, self.settings, self.stop, self.seeds = sampler, model, settings, stop, seeds
        self.ids = [list(prompt) for prompt in prompts]

    def turn(
        self, rows: Sequence[int], read: Sequence[Sequence[int]], most: Sequence[int], turn: int
    ) -> list[DrawnTokens]:
        """Draw from the rows as they are now."""
        for row, tokens in zip(rows, read, strict=True):
            self.ids[row] += tokens
        settings = self.settings.model_copy(update={"max_tokens": max(most)})
        seeds = turn_seeds(self.seeds[list(rows)], turn)
        sampled: Sampled = self.sampler(self.model, [self.ids[row] for row in rows], 1, settings, seeds)
        check_sampled(sampled, type(self.sampler).__name__, len(rows), 1)
        drawn = [self._cut(sampled, i, limit) for i, limit in enumerate(most)]
        for row, one in zip(rows, drawn, strict=True):
            self.ids[row] += one.tokens
        return drawn

    def _cut(self, sampled: Sampled, number: int, most: int) -> DrawnTokens:
        ids = sampled.completion_ids[number, 0, : int(sampled.lengths[number, 0])].tolist()[:most]
        ids = ids[: self.stop.end(ids)]
        return DrawnTokens(ids, None if sampled.logps is None else sampled.logps[number, 0, : len(ids)].tolist())


class Parked(NamedTuple):
    """Rows that wait: [n] numbers, [n, L] which places hold a token of theirs, and keys and values [n, heads, L, D] by layer."""

    rows: Tensor
    mask: Tensor
    layers: list[tuple[Tensor, Tensor]]


class KeptReading(Reading):
    """A `Reading` of rows that leave when their turn is over, and come back with all that they have read.

    In memory, keys and values of a row that has left are beside those of the others, without padding of the others'.
    """

    def start(self, prompts: Sequence[Sequence[int]], copies: int) -> Tensor:
        """Read each prompt once; logits [N, V] of what follows in `copies` rows of each."""
        self.rows = torch.arange(len(prompts) * copies, device=self.policy.device)
        self.parked: list[Parked] = []
        return super().start(prompts, copies)

    def keep(self, rows: Tensor) -> None:
        """Go on with these alone; the others wait."""
        gone = torch.ones_like(self.rows, dtype=torch.bool)
        gone[rows] = False
        self._park(gone.nonzero()[:, 0])
        super().keep(rows)
        self.rows = self.rows[rows]

    def park(self) -> None:
        """Let all rows wait; the cache is theirs, since the next turn has one of its own."""
        self._park(slice(None))

    def _park(self, places: Tensor | slice) -> None:
        held: list[Any] = self.cache.layers
        layers = [(layer.keys[places], layer.values[places]) for layer in held]
        self.parked.append(Parked(self.rows[places], self.mask[places].bool(), layers))

    def resume(self, rows: Sequence[int], ids: Sequence[Sequence[int]], kept: Sequence[int]) -> Tensor:
        """Go on with these rows; logits [N, V] of what follows.

        Args:
            rows: their numbers.
            ids: all tokens of each.
            kept: how many of them were read before and are to be kept, at most; the rest is read now.
        """
        device = self.policy.device
        order = {int(row): place for place, row in enumerate(torch.cat([part.rows for part in self.parked]))}
        chosen = torch.tensor([order[row] for row in rows], device=device)
        self.rows = torch.tensor(list(rows), device=device)
        limits = torch.full((len(order),), 0, device=device)
        limits[chosen] = torch.tensor(list(kept), device=device)
        lengths = self._compact(limits, chosen)
        fresh = [list(tokens[length:]) for tokens, length in zip(ids, lengths.tolist(), strict=True)]
        width = max(map(len, fresh))
        block = torch.tensor([[0] * (width - len(tokens)) + tokens for tokens in fresh], device=device)
        new = torch.tensor([[0] * (width - len(tokens)) + [1] * len(tokens) for tokens in fresh], device=device)
        self.mask = torch.cat([self.mask, new], 1)
        return self._read(block, (self.mask.cumsum(-1) - 1).clamp(min=0)[:, -width:])

    def _compact(self, limits: Tensor, chosen: Tensor) -> Tensor:
        """Makes a cache of the chosen ones of all parked rows, each with as many tokens as its limit; how many it has, [N]."""
        starts = torch.tensor([len(part.rows) for part in self.parked]).cumsum(0).tolist()
        valid = [
            part.mask & (part.mask.cumsum(-1) <= limits[end - len(part.rows) : end, None])
            for part, end in zip(self.parked, starts, strict=True)
        ]
        lengths = torch.cat([mask.sum(-1) for mask in valid])[chosen]
        width = int(lengths.max())
        gathered: list[list[Tensor]] = [[] for _ in range(2 * len(self.parked[0].layers))]
        for part, mask in zip(self.parked, valid, strict=True):
            places = torch.arange(mask.shape[1], device=mask.device).expand_as(mask)
            # The places of its tokens in order, at the right; what stands left of them is outside the new mask.
            index = torch.where(mask, places, -1).sort(-1).values[:, -width:].clamp(min=0)
            for into, held in zip(gathered, [tensor for layer in part.layers for tensor in layer], strict=True):
                taken = held.gather(2, index[:, None, :, None].expand(-1, held.shape[1], -1, held.shape[3]))
                into.append(pad(taken, (0, 0, width - index.shape[1], 0)))
        self.parked = []
        self.mask = (torch.arange(width, device=lengths.device) >= width - lengths[:, None]).long()
        self.cache = growing_cache(self.policy.causal.config)
        for number in range(len(gathered) // 2):
            keys, values = (torch.cat(parts)[chosen] for parts in gathered[2 * number : 2 * number + 2])
            self.cache.update(keys, values, number)
        return lengths


def keeps_turns(policy: Policy) -> bool:
    """Whether what a model has read can be kept from turn to turn: keys and values of full attention, with positions given."""
    layers = growing_cache(policy.causal.config).layers
    return Reading(policy).places and bool(layers) and all(type(layer) is GrowingLayer for layer in layers)


class KeptConversation:
    """A `Conversation` by a model whose keys and values of what it has read are kept from turn to turn.

    Args:
        policy: of which `keeps_turns` holds.
        prompts: P of them.
        copies: rows of each.
        seeds: [P·copies] int64, of the rows' noise.
        settings: the recipe's.
        ends: tokens that end a turn.
        stop: texts that end a turn.
    """

    def __init__(
        self,
        policy: Policy,
        prompts: Sequence[Sequence[int]],
        copies: int,
        seeds: Tensor,
        settings: Sampling,
        ends: Sequence[int],
        stop: StopTexts,
    ):
        self.reading, self.prompts, self.copies = KeptReading(policy), prompts, copies
        self.seeds, self.settings, self.ends, self.stop = seeds, settings, ends, stop
        self.ids = [list(prompt) for prompt in prompts for _ in range(copies)]

    def turn(
        self, rows: Sequence[int], read: Sequence[Sequence[int]], most: Sequence[int], turn: int
    ) -> list[DrawnTokens]:
        """Draw from the rows as they are now."""
        if turn == 0:
            logits = self.reading.start(self.prompts, self.copies)
            if len(rows) < len(self.ids):
                chosen = torch.tensor(list(rows), device=logits.device)
                self.reading.keep(chosen)
                logits = logits[chosen]
        else:
            kept = [len(self.ids[row]) - 1 for row in rows]  # its last token has no logits any more, so it is read
            for row, tokens in zip(rows, read, strict=True):
                self.ids[row] += tokens
            logits = self.reading.resume(rows, [self.ids[row] for row in rows], kept)
        keys = row_keys(turn_seeds(self.seeds[list(rows)], turn), 1)
        completed = self.stop.completed if self.stop.texts else None
        drawn = draw_rows(self.reading, logits, self.settings, keys, self.ends, torch.tensor(list(most)), completed)
        self.reading.park()
        for row, one in zip(rows, drawn, strict=True):
            self.ids[row] += one.tokens
        return drawn
