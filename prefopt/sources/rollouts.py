"""Where logical batches come from when the policy learns from what it writes: prompts, completions, feedback."""

import dataclasses
import logging
import math
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import islice
from typing import Any

import torch

from prefopt import recipe
from prefopt.data import Tokenised
from prefopt.data.ordering import Order, permutation
from prefopt.data.selecting import KEPT, Ties, select_checked
from prefopt.policy import TransformersSampler
from prefopt.policy.decode.sampler import prompts_together
from prefopt.sources.ahead import DrawnBatch, age
from prefopt.sources.rollout_rows import batch_of, end_metrics, episode_metrics, judged_row, record
from prefopt.sources.scoring import MISREAD, PromptCompletions, Scoring, misread
from prefopt.sources.writers import Writer, mismatched
from prefopt.sources.writing import Completer, recorded
from prefopt.support.errors import PrefoptError
from prefopt.support.out_of_memory import ROLLOUTS, advising
from prefopt.support.seeds import seed_for
from prefopt.types import ORIGINS, Batch, Feedback, Needs, Verdict, Written

log = logging.getLogger(__name__)

ROUNDS = 10
"""Times that a batch is filled up with further prompts before it goes as it is."""

NO_VERDICT = "completions dropped: no verdict"
VERDICTS = "completions with a verdict"
ALIKE = "prompts replaced: all their completions have one score"

COUNTS = tuple(f"rollouts/{name}" for name in ("skipped", "dropped", *(f"feedback_{name}" for name in MISREAD)))
"""The names of `Rollouts.metrics`."""

Judged = tuple[PromptCompletions, Sequence[float] | None]
"""Completions of a prompt, and their scores if it has them."""

AGE = "rollouts/age"
"""A further one, where batches are drawn ahead."""


Round = tuple[list[int], Callable[[], list[PromptCompletions]]]
"""The numbers of some prompts, and what waits for the completions that are being written on them."""


class Rollouts:
    """An endless stream of logical batches: the next prompts, K completions of each by the current policy, and their scores.

    A batch of which no prompt can be used is empty: it has no rows, and makes no update.

    Other writers may add further completions: the reference's, a greedy one, a mixture's, the data's own, another prompt's.
    Noise is a function of (seed, batch, prompt, completion), so that a batch does not depend on the number of processes or on
    a resume. Every process holds the whole batch.

    With `settings.staleness` of n, batches are drawn n ahead: the policy that writes batch t (from 0) has learnt from the first
    max(0, t − n) of them, whatever the timing. What is drawn ahead and not learnt from yet is part of the state. A `Remote` sampler
    draws the last of them while the policy is trained on the first.

    Args:
        rows: prompts, tokenised.
        order: in which they come.
        writers: who writes; the policy first.
        completer: draws what they write.
        scoring: the feedback.
        needs: of the objectives, to order and choose completions.
        settings: the recipe's `source.rollouts`.
        batch_size: prompts in a logical batch.
        seed: of the noise.
        ties: of completions with equal scores, where an order is needed.
        columns: the rows' columns that go into batches.

    Attributes:
        version: how many batches there was something to learn from, and so how many updates the policy has had.
        tokens: drawn so far for batches.
        judged: completions that feedback scored so far.
        counts: completions and prompts of the last batch drawn that could not be used, by the reason.
        metrics: of the batch to be trained on: whether it was empty, what was dropped, what feedback did not read as it was
            written; of all that the policy wrote for it, why it ended, and of episodes the means of what the environment logs;
            and its age, if it was drawn ahead.

    Raises:
        PrefoptError: fewer prompts than a batch holds.
    """

    def __init__(
        self,
        rows: Sequence[Tokenised],
        order: Order,
        writers: Sequence[Writer],
        completer: Completer,
        scoring: Scoring,
        needs: Needs,
        settings: recipe.Rollouts,
        batch_size: int,
        seed: int,
        ties: Ties = "drop",
        columns: Sequence[str] = (),
    ) -> None:
        if not 1 <= batch_size <= len(rows):
            raise PrefoptError(f"a logical batch of {batch_size} prompts from {len(rows)} prompts: make it smaller")
        self.rows = rows
        self.order = order
        self.writers = writers
        self.completer = completer
        self.scoring = scoring
        self.settings = settings
        self.joins_mismatched = any(writer.origin == "mismatched" for writer in writers)
        # A mismatched completion joins when the batch is made, after the choice among the others.
        wants = None if needs.completions is None else needs.completions - self.joins_mismatched
        self.needs = dataclasses.replace(needs, rollouts=False, columns=(), axes={}, completions=wants)
        self.needs_rollouts = needs.rollouts
        self.constrained = "cost" in needs.columns
        self.ties = ties
        self.batch_size = batch_size
        self.seed = seed
        self.columns = tuple(columns)
        self.draws = 0
        self.version = 0
        self.tokens = 0
        self.judged = 0
        self.counts: Counter[str] = Counter()
        self.misread: Counter[str] = Counter()
        self.judged_groups: list[Judged] = []  # of the last batch
        self.silent = 0  # batches in a row on which feedback gave no verdict at all
        self.warned = False
        self.skipped = False  # whether nothing could be learnt from the last batch
        self.metrics: dict[str, float] = dict.fromkeys(COUNTS, 0)
        self._ahead: deque[DrawnBatch] = deque()
        self._drawing: Callable[[], DrawnBatch] | None = None
        self._pool = ThreadPoolExecutor(1, "rollouts") if settings.staleness and completer.remote else None
        self._told: Callable[[int | None], Sequence[Mapping[str, Any]]] = lambda _: ()

    def __iter__(self) -> Iterator[Batch]:
        """Batches of the current policy, or of one of `staleness` batches ago; the place moves as they are taken."""
        while True:
            while len(self._ahead) + (self._drawing is not None) <= self.settings.staleness:
                self.settle()
                self._drawing = self._begin()
            if self._pool is None:
                self.settle()
            yield self._next()

    def settle(self) -> None:
        """Wait for the batch that is being drawn while others are trained on, if there is one, and for feedback on it.

        All processes do so before a policy is measured: what a server is given then would be mixed into the batch.
        """
        if self._drawing is not None:
            drawing, self._drawing = self._drawing, None
            with advising("rollouts", ROLLOUTS):
                self._ahead.append(drawing())

    def _next(self) -> Batch:
        """The first of those that were drawn."""
        drawn = self._ahead.popleft()
        self.metrics, self._told = dict(drawn.metrics), drawn.told
        if self.settings.staleness:
            self.metrics[AGE] = age(drawn.batch, self.version)
        self.version += bool(len(drawn.batch))
        return drawn.batch

    @property
    def feedback(self) -> Mapping[str, Feedback]:
        """By what it fills: "scores", and perhaps "cost" and "gold"."""
        return self.scoring.feedback

    @property
    def dropped(self) -> int:
        """How many completions and prompts of the last batch could not be used."""
        return sum(count for what, count in self.counts.items() if what not in (*KEPT, VERDICTS))

    @property
    def unused(self) -> str:
        """The same in words, with the reasons."""
        return "; ".join(f"{count} {what}" for what, count in (+self.counts).items() if what != VERDICTS)

    def _measured(self) -> dict[str, float]:
        """The `metrics` of the last batch drawn."""
        counts = (int(self.skipped), self.dropped, *(self.misread[name] for name in MISREAD))
        own = [group.written[: self.settings.completions] for group, _ in self.judged_groups]
        return dict(zip(COUNTS, counts, strict=True)) | end_metrics(own) | episode_metrics(own)

    def records(self, most: int) -> Sequence[Mapping[str, Any]]:
        """The first completions of the batch to be trained on, as rows of data: prompts, turns, scores, why they ended."""
        return self._told(most)

    def _completions(self, groups: Sequence[Judged], most: int | None) -> list[dict[str, Any]]:
        """The `records` of a batch."""
        places = ((group, scores, k) for group, scores in groups for k in range(len(group.written)))
        return [
            record(group, k, None if scores is None else scores[k], self.completer)
            for group, scores, k in islice(places, most)
        ]

    def fit(self, reference: Any) -> None:
        """Let feedback that measures the reference first do so, on one sample of each of as many prompts as two batches have."""
        if not self.scoring.unfitted:
            return
        chosen = permutation(len(self.rows), self.seed, -1)[: 2 * self.batch_size].tolist()
        self.completer.sync(reference)
        writer = Writer("reference", reference, 1, sampling=self.settings.sampling)
        groups = self._begin_writing([self.rows[i] for i in chosen], [writer], "fit", self.version)()
        self.scoring.fit(groups)

    def _begin(self) -> Callable[[], DrawnBatch]:
        """Begin a batch, and give what waits for it."""
        with advising("rollouts", ROLLOUTS):
            self.completer.sync(self.writers[0].model, self.version)
            first = self._begin_round(self.batch_size, self.version)
        return partial(self._drawn, first, self.version)

    def _drawn(self, first: Round, version: int) -> DrawnBatch:
        """The batch that began with a round of this version of the policy; further rounds are of the same."""
        rows: list[Tokenised] = []
        self.counts.clear()
        self.misread.clear()
        self.judged_groups = []
        for number in range(ROUNDS if self.settings.refill else 1):
            rows += self._judged(first if number == 0 else self._begin_round(self.batch_size - len(rows), version))
            if len(rows) == self.batch_size:
                break
        self.skipped = not rows
        if self.skipped:
            self._note_empty()
            batch = self._empty()
        else:
            self.silent = 0
            batch = batch_of(rows, self.columns, whole=not self.needs_rollouts)
            batch = mismatched(batch) if self.joins_mismatched else batch
        return DrawnBatch(batch, self._measured(), partial(self._completions, self.judged_groups))

    def _note_empty(self) -> None:
        """Warn, once, of a batch that nothing can be learnt from.

        All rewards of a task that is solved, or out of reach, are equal, which is no error: the next prompts may differ.

        Raises:
            PrefoptError: for as many batches in a row as `ROUNDS`, feedback gave no verdict at all.
        """
        why = self.unused
        self.silent = self.silent + 1 if self.counts[NO_VERDICT] and not self.counts[VERDICTS] else 0
        if self.silent == ROUNDS:
            raise PrefoptError(f"feedback gave no verdict on {ROUNDS} batches of rollouts in a row; of the last: {why}")
        if not self.warned:
            self.warned = True
            log.warning(
                "nothing can be learnt from a batch of rollouts (%s), so it makes no update; `rollouts/skipped` counts such steps",
                why,
            )

    def _empty(self) -> Batch:
        """A batch of no prompts."""
        width = max(self.needs.completions or 1, 1)
        tokens = torch.zeros(0, width, 1, dtype=torch.long)
        return Batch((), tokens, tokens.bool())

    def _begin_round(self, count: int, version: int) -> Round:
        """The next `count` prompts, which a version of the policy begins to write on."""
        numbers = self.order.take(count)
        self.draws += 1
        # The transformers sampler draws in parts anyway; another one may draw a batch as it likes.
        prefetch = isinstance(self.completer.sampler, TransformersSampler) and bool(self.scoring.prefetching)
        rows = [self.rows[number] for number in numbers]
        return numbers, self._begin_writing(rows, self.writers, self.draws, version, prefetch)

    def _judged(self, one: Round) -> list[Tokenised]:
        """The usable prompts of a round, with completions and scores."""
        numbers, groups = one[0], one[1]()
        verdicts = self.scoring.verdicts(groups, self.draws)
        self._check_given(verdicts)
        self._account(groups, verdicts, numbers)
        scores = verdicts["scores"].totals.tolist() if "scores" in verdicts else [None] * len(groups)
        self.judged_groups += zip(groups, scores, strict=True)
        self.misread.update(misread(verdicts.values()))
        dropped: Counter[str] = Counter()
        further = self._further_columns()
        judged = [judged_row(group, verdicts, i, self.constrained, further) for i, group in enumerate(groups)]
        rows = list(select_checked(judged, self.needs, self.ties, dropped))
        self.counts.update(+dropped)
        if self.settings.refill:
            alike = _alike(groups, verdicts)
            varied = [row for row in rows if row.scores is None or (len({*row.scores}) > 1 and row.row not in alike)]
            self.counts[ALIKE] += len(rows) - len(varied)
            rows = varied
        return rows

    def _account(
        self, groups: Sequence[PromptCompletions], verdicts: Mapping[str, Verdict], numbers: Sequence[int]
    ) -> None:
        """Counts what was drawn and scored, and tells the order how the prompts went."""
        drawn = [writer.model is not None for writer in self._present for _ in range(writer.completions)]
        self.tokens += sum(
            sum(one.mask) for g in groups for one, by_model in zip(g.written, drawn, strict=True) if by_model
        )
        if "scores" in verdicts:
            scores = verdicts["scores"].totals
            self.judged += sum(len(group.texts) for group in groups)
            own = scores[:, : self.settings.completions]  # the policy's, who writes first
            self.order.observe(numbers, own.nanmean(-1).tolist())
            self.counts[NO_VERDICT] += int(scores.isnan().sum())
            self.counts[VERDICTS] += int((~scores.isnan()).sum())

    def _begin_writing(
        self,
        rows: Sequence[Tokenised],
        writers: Sequence[Writer],
        turn: int | str,
        version: int,
        prefetch: bool = False,
    ) -> Callable[[], list[PromptCompletions]]:
        """Let these writers begin to write on these prompts, and give what waits for it.

        Args:
            rows: the prompts.
            writers: who writes.
            turn: the number of the draw, of which the noise is a function.
            version: of the policy.
            prefetch: ask feedback about each part while the next is written.
        """
        groups = [PromptCompletions(row) for row in rows]
        places, size = list(enumerate(groups)), len(groups)
        if prefetch:  # in parts, as the sampler would draw them: like lengths together
            places.sort(key=lambda place: len(place[1].row.prompt_ids))
            together = prompts_together(self.settings.batch_size, self.settings.completions)
            size = together * self.completer.accelerator.num_processes
        begun: list[Callable[[], None]] = []
        for start in range(0, len(places), size):
            part = places[start : start + size]
            for number, writer in enumerate(writers):
                begun.append(self._begin_part(part, writer, (self.seed, "rollouts", turn, number), version))
            if prefetch:
                while begun:
                    begun.pop(0)()
                self.scoring.prefetch([group for _, group in part])

        def written() -> list[PromptCompletions]:
            for finish in begun:
                finish()
            return groups

        return written

    def _begin_part(
        self, places: Sequence[tuple[int, PromptCompletions]], writer: Writer, noise: Sequence[int | str], version: int
    ) -> Callable[[], None]:
        """Let a writer begin on prompts with their places in the batch, and give what waits for it and adds it to them."""
        groups = [group for _, group in places]
        waits: Callable[[], list[list[Written]]]
        if writer.origin == "dataset":
            waits = partial(self._recorded, groups)
        elif writer.model is None:
            return lambda: None
        else:
            seeds = torch.tensor([seed_for(*noise, place, group.row.row) for place, group in places])
            # All writers face the task of a prompt: it is of the draw, and not of the writer.
            tasks = [seed_for(*noise[:-1], "environment", place, group.row.row) for place, group in places]
            by = None if writer.origin == "reference" else version
            rows, number = [group.row for group in groups], writer.completions
            waits = self.completer.begin(writer.model, rows, number, writer.sampling, seeds, by, tasks, self._pool)

        def finish() -> None:
            for group, completions in zip(groups, waits(), strict=True):
                for completion in completions:
                    self._append(group, completion)

        return finish

    def _recorded(self, groups: Sequence[PromptCompletions]) -> list[list[Written]]:
        """The data's own completion of each prompt."""
        masks = (None if group.row.masks is None else group.row.masks[0] for group in groups)
        ends = self.completer.ends
        return [[recorded(g.row.completion_ids[0], mask, ends)] for g, mask in zip(groups, masks, strict=True)]

    def _append(self, group: PromptCompletions, completion: Written) -> None:
        group.written.append(completion)
        group.texts.append(self.completer.completion(completion, group.row.example.prompt))

    @property
    def _present(self) -> list[Writer]:
        """Those whose completions are there before the batch is made."""
        return [writer for writer in self.writers if writer.origin != "mismatched"]

    def _further_columns(self) -> dict[str, Any]:
        """Who wrote each completion of a prompt, whether it is trained on, and the policy's temperature."""
        return {
            "origin": [ORIGINS.index(writer.origin) for writer in self._present for _ in range(writer.completions)],
            "trained": [writer.trained for writer in self._present for _ in range(writer.completions)],
            "temperature": float(self.settings.sampling.temperature or 1.0),
        }

    def _check_given(self, verdicts: Mapping[str, Verdict]) -> None:
        """Refuse feedback that lacks what an objective reads: comparisons, or a score by its name."""
        if self.needs.preference and "scores" in verdicts and verdicts["scores"].preference is None:
            raise PrefoptError(
                "the objective needs the probability that one completion beats another, and the feedback gave scores alone: take "
                "feedback that compares, such as a pairwise judge, or return Verdict(scores, preference=…), [B, K, K]"
            )
        given = verdicts["scores"].named if "scores" in verdicts else {}
        if missing := [name for name in self.needs.named_scores if name not in given]:
            wanted, known = ", ".join(self.needs.named_scores), ", ".join(given) or "none"
            raise PrefoptError(
                f"the objective needs the named scores {wanted}, and the feedback gave no {missing[0]!r}: "
                f"it returns Verdict(scores, named={{{missing[0]!r}: …}}); it named {known}"
            )

    def state_dict(self) -> dict[str, Any]:
        """The place among the prompts, the numbers of draws and batches, what they cost, and the running numbers of feedback."""
        self.settle()
        return {
            "order": self.order.state_dict(),
            "draws": self.draws,
            "version": self.version,
            "spent": (self.tokens, self.judged),
            "feedback": self.scoring.state_dict(),
            "ahead": [drawn.state_dict() for drawn in self._ahead],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Return to a place.

        Raises:
            PrefoptError: it is a place in other data, or in another order.
        """
        self._drawing = None
        self.order.load_state_dict(state["order"])
        self.draws, self.version = state["draws"], state["version"]
        self.tokens, self.judged = state["spent"]
        self.scoring.load_state_dict(state["feedback"])
        self._ahead = deque(map(DrawnBatch.of_state, state.get("ahead", ())))  # older checkpoints lack it


def _alike(groups: Sequence[PromptCompletions], verdicts: Mapping[str, Verdict]) -> set[int]:
    """The numbers of the prompts whose completions have one score before any transform: a penalty says nothing of the task."""
    verdict = verdicts.get("scores")
    alike = set()
    for b, (group, note) in enumerate(zip(groups, verdict.notes if verdict else (), strict=False)):
        raw = note.get("untransformed", ())
        steps = verdict.steps[b] if verdict and verdict.steps is not None else [()] * len(raw)
        scores = {score + math.fsum(of_turns) for score, of_turns in zip(raw, steps, strict=True) if score is not None}
        if len(scores) == 1:
            alike.add(group.row.row)
    return alike
