"""Where logical batches come from when the policy learns from what it writes: prompts, samples, feedback."""

import dataclasses
import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from prefopt.data import Tokenised, collate
from prefopt.data.ordering import Order, permutation
from prefopt.data.selecting import KEPT_TIED, Ties, select_checked
from prefopt.data.texts import decode_completion
from prefopt.feedback import ask, prefetching, together
from prefopt.feedback.calling import Prefetching, fit, is_unfitted, restore, state_of
from prefopt.policy import TransformersSampler
from prefopt.policy.decode.sampler import prompts_together
from prefopt.policy.parallel import draw
from prefopt.sources.writers import Writer, mismatched
from prefopt.support.errors import PrefoptError
from prefopt.support.files import unused
from prefopt.support.seeds import seed_for
from prefopt.types import ORIGINS, Batch, Feedback, Needs, Sampler, Verdict

ROUNDS = 10
"""Times that a batch is filled up with further prompts before it goes as it is."""

NO_VERDICT = "completions dropped: no verdict"
ALIKE = "prompts replaced: all their completions have one score"


@dataclass
class Writing:
    """What the writers wrote on one prompt.

    Attributes:
        row: the prompt.
        ids: K completions as tokens.
        texts: the same as text, without special tokens.
        ended: whether each came to an end token.
        logps: of each token, by whoever drew it; None where it is not known.
    """

    row: Tokenised
    ids: list[tuple[int, ...]] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    ended: list[bool] = field(default_factory=list)
    logps: list[list[float] | None] = field(default_factory=list)


class Rollouts:
    """An endless stream of logical batches: the next prompts, K completions of each by the current policy, and their scores.

    Other writers may add further completions: the reference's, a greedy one, a mixture's, the data's own, another prompt's.
    Noise is a function of (seed, batch, prompt, completion), so that a batch does not depend on the number of processes or on
    a resume. Every process holds the whole batch. Reward models deal their work to all of them; any other feedback is asked by
    the main process alone, and all hear its answer.

    Args:
        rows: prompts, tokenised.
        order: in which they come.
        writers: who writes; the policy first.
        sampler: draws what writers write.
        tokenizer: the policy's, to show feedback what was written.
        ends: ids of tokens that end a completion.
        settings: the recipe's `source.rollouts`.
        feedback: by what it fills: "scores", and perhaps "cost" and "gold".
        needs: of the objectives, to order and choose completions.
        ties: of completions with equal scores, where an order is needed.
        batch_size: prompts in a logical batch.
        seed: of the noise.
        accelerator: knows the processes.
        folder: where a batch goes that the feedback failed on.
        columns: the rows' columns that go into batches.
    """

    def __init__(
        self,
        rows: Sequence[Tokenised],
        order: Order,
        writers: Sequence[Writer],
        sampler: Sampler,
        tokenizer: Any,
        ends: Sequence[int],
        settings: Any,
        feedback: Mapping[str, Feedback],
        needs: Needs,
        ties: Ties,
        batch_size: int,
        seed: int,
        accelerator: Accelerator,
        folder: Path | None = None,
        columns: Sequence[str] = (),
    ) -> None:
        if not 1 <= batch_size <= len(rows):
            raise PrefoptError(f"a logical batch of {batch_size} prompts from {len(rows)} prompts: make it smaller")
        self.rows = rows
        self.order = order
        self.writers = writers
        self.sampler = sampler
        self.tokenizer = tokenizer
        self.ends = frozenset(ends)
        self.settings = settings
        self.feedback = feedback
        # What another prompt completed joins when the batch is made.
        others = sum(writer.origin == "mismatched" for writer in writers)
        wants = None if needs.completions is None else needs.completions - others
        self.needs = dataclasses.replace(needs, rollouts=False, columns=(), completions=wants)
        self.constrained = "cost" in needs.columns
        self.ties = ties
        self.batch_size = batch_size
        self.seed = seed
        self.accelerator = accelerator
        self.folder = folder
        self.columns = tuple(columns)
        self.draws = 0
        self.tokens = 0  # drawn so far for batches, and the completions that feedback scored
        self.judged = 0
        self.counts: Counter[str] = Counter()

    def __iter__(self) -> Iterator[Batch]:
        """Batches of the current policy; the place moves as they are taken."""
        while True:
            yield self._batch()

    @property
    def dropped(self) -> int:
        """How many completions and prompts of the last batch could not be used."""
        return sum(count for what, count in self.counts.items() if what != KEPT_TIED)

    def fit(self, reference: Any) -> None:
        """Let feedback that measures the reference first do so, on one sample of each of as many prompts as two batches have."""
        unfitted = [f for f in self.feedback.values() if is_unfitted(f)]
        if not unfitted:
            return
        chosen = permutation(len(self.rows), self.seed, -1)[: 2 * self.batch_size].tolist()
        writers = [Writer("reference", reference, 1, sampling=self.settings.sampling)]
        shown = _shown(self._write([self.rows[i] for i in chosen], writers, "fit"))
        try:
            for feedback in unfitted:
                together(feedback, self.accelerator, partial(fit, feedback, *shown))
        except PrefoptError as error:
            raise PrefoptError(f"{error}{self._saved(*shown[:2])}") from error

    def _batch(self) -> Batch:
        kept: list[Tokenised] = []
        self.counts.clear()
        for _ in range(ROUNDS if self.settings.refill else 1):
            kept += self._written(self.batch_size - len(kept))
            if len(kept) == self.batch_size:
                break
        if not kept:
            why = "; ".join(f"{count} {what}" for what, count in self.counts.items())
            raise PrefoptError(f"no prompt of a batch of rollouts can be used: {why}")
        batch = collate(kept, [*self.columns, *self._added(kept)])
        return mismatched(batch) if any(writer.origin == "mismatched" for writer in self.writers) else batch

    def _written(self, count: int) -> list[Tokenised]:
        """The usable ones of the next `count` prompts, with completions and scores."""
        numbers = self.order.take(count)
        self.draws += 1
        writings = self._write([self.rows[number] for number in numbers], self.writers, self.draws, self._judges())
        verdicts = self._verdicts(writings)
        rows = [self._judged(writing, verdicts, i) for i, writing in enumerate(writings)]
        self.tokens += sum(len(ids) for w in writings for ids, who in zip(w.ids, self._writers(), strict=True) if who)
        if "scores" in verdicts:
            self.judged += sum(len(writing.texts) for writing in writings)
            own = verdicts["scores"].scores[:, : self.settings.completions]  # the policy's, who writes first
            self.order.observe(numbers, own.nanmean(-1).tolist())
            self.counts[NO_VERDICT] += int(verdicts["scores"].scores.isnan().sum())
        dropped: Counter[str] = Counter()
        usable = list(select_checked(rows, self.needs, self.ties, dropped))
        self.counts.update(+dropped)
        if self.settings.refill:
            varied = [row for row in usable if row.scores is None or len({*row.scores}) > 1]
            self.counts[ALIKE] += len(usable) - len(varied)
            usable = varied
        return usable

    def _judges(self) -> list[Prefetching]:
        """Who can be asked while the rest is written: those elsewhere, where the sampler draws a batch in parts anyway."""
        if not isinstance(self.sampler, TransformersSampler):
            return []
        return [part for feedback in self.feedback.values() for part in prefetching(feedback)]

    def _write(
        self, rows: Sequence[Tokenised], writers: Sequence[Writer], turn: int | str, judges: Sequence[Prefetching] = ()
    ) -> list[Writing]:
        """What these writers write on these prompts; the judges are asked of each part while the next is written."""
        writings = [Writing(row) for row in rows]
        places, size = list(enumerate(writings)), len(writings)
        if judges:  # in parts, as the sampler would draw them: like lengths together
            places.sort(key=lambda place: len(place[1].row.prompt_ids))
            together = prompts_together(self.settings.batch_size, self.settings.completions)
            size = together * self.accelerator.num_processes
        for start in range(0, len(places), size):
            part = places[start : start + size]
            self._fill(part, writers, turn)
            for judge in judges if self.accelerator.is_main_process else ():
                judge.prefetch(*_shown([writing for _, writing in part]))
        return writings

    def _fill(self, places: Sequence[tuple[int, Writing]], writers: Sequence[Writer], turn: int | str) -> None:
        """Add what these writers write, on prompts with their places in the batch."""
        writings = [writing for _, writing in places]
        for number, writer in enumerate(writers):
            if writer.model is None:
                for writing in writings if writer.origin == "dataset" else ():
                    self._add(writing, writing.row.completion_ids[0], None)
                continue
            names = (self.seed, "rollouts", turn, number)
            seeds = torch.tensor([seed_for(*names, place, writing.row.row) for place, writing in places])
            prompts = [writing.row.prompt_ids for writing in writings]
            sampling = writer.sampling
            drawn = draw(self.sampler, writer.model, prompts, writer.completions, sampling, seeds, self.accelerator)
            lengths = drawn.mask.sum(-1).tolist()
            ids, logps = drawn.completion_ids.tolist(), None if drawn.logps is None else drawn.logps.tolist()
            for b, writing in enumerate(writings):
                for k, length in enumerate(lengths[b]):
                    self._add(writing, ids[b][k][:length], None if logps is None else logps[b][k][:length])

    def _add(self, writing: Writing, ids: Sequence[int], logps: list[float] | None) -> None:
        if not ids:
            raise PrefoptError("a sampler drew a completion without tokens; one has at least its end token")
        writing.ids.append(tuple(ids))
        writing.texts.append(decode_completion(self.tokenizer, ids))
        writing.ended.append(ids[-1] in self.ends)
        writing.logps.append(logps)

    def _verdicts(self, writings: Sequence[Writing]) -> dict[str, Verdict]:
        """What each feedback says; the texts are kept if one fails."""
        shown = _shown(writings)
        try:
            return {what: ask(feedback, what, *shown, self.accelerator) for what, feedback in self.feedback.items()}
        except PrefoptError as error:
            raise PrefoptError(f"{error}{self._saved(*shown[:2])}") from error

    def _saved(self, prompts: Sequence[Any], texts: Sequence[Sequence[str]]) -> str:
        """Where the texts are now."""
        if self.folder is None or not self.accelerator.is_main_process:
            return ""
        file = unused(self.folder / f"feedback-failed-batch-{self.draws}.jsonl")
        file.parent.mkdir(parents=True, exist_ok=True)
        lines = [
            json.dumps({"prompt": prompt, "completions": list(written)}, ensure_ascii=False)
            for prompt, written in zip(prompts, texts, strict=True)
        ]
        file.write_text("".join(f"{line}\n" for line in lines))
        return f" The batch is in {file}."

    def _judged(self, writing: Writing, verdicts: Mapping[str, Verdict], i: int) -> Tokenised:
        """The prompt with its completions and all that is said about them, as if it were a row of data."""
        verdict = verdicts.get("scores")
        scores = preference = None
        if verdict is not None:
            given = verdict.scores[i]
            if self.constrained:  # a completion whose cost nobody knows cannot be learnt from
                given = given + 0 * verdicts["cost"].scores[i]
            scores = tuple(None if math.isnan(s) else s for s in given.tolist())
            preference = None if verdict.preference is None else tuple(map(tuple, verdict.preference[i].tolist()))
        columns: dict[str, Any] = {**writing.row.columns, "ended": writing.ended}
        columns["origin"], columns["trained"] = self._roles()
        columns["temperature"] = float(self.settings.sampling.temperature or 1.0)
        columns["sampler_logps"] = [
            torch.full((len(ids),), math.nan) if logps is None else torch.tensor(logps)
            for ids, logps in zip(writing.ids, writing.logps, strict=True)
        ]
        columns |= {what: verdicts[what].scores[i].tolist() for what in ("cost", "gold") if what in verdicts}
        example = dataclasses.replace(
            writing.row.example,
            completions=tuple(writing.texts),
            scores=scores,
            preference=preference,
            columns=columns,
        )
        return dataclasses.replace(
            writing.row,
            completion_ids=tuple(writing.ids),
            scores=scores,
            preference=preference,
            example=example,
            masks=self._masks(writing),
            completions_cut=tuple(not ended for ended in writing.ended),
        )

    def _masks(self, writing: Writing) -> tuple[tuple[bool, ...], ...] | None:
        """Which tokens were written and not a tool's or user's: only completions of the data have others."""
        of_data = writing.row.masks
        if of_data is None or not any(writer.origin == "dataset" for writer in self.writers):
            return None
        origins, _ = self._roles()
        dataset = ORIGINS.index("dataset")
        return tuple(
            of_data[0] if origin == dataset else (True,) * len(ids)
            for origin, ids in zip(origins, writing.ids, strict=True)
        )

    def _roles(self) -> tuple[list[int], list[bool]]:
        """Origin, and whether it is trained on, of each completion of a prompt."""
        written = [writer for writer in self.writers if writer.origin != "mismatched"]
        origins = [ORIGINS.index(writer.origin) for writer in written for _ in range(writer.completions)]
        return origins, [writer.trained for writer in written for _ in range(writer.completions)]

    def _writers(self) -> list[bool]:
        """Of each completion of a prompt, whether a model drew it."""
        written = [writer for writer in self.writers if writer.origin != "mismatched"]
        return [writer.model is not None for writer in written for _ in range(writer.completions)]

    def _added(self, rows: Sequence[Tokenised]) -> list[str]:
        """Columns that rollouts put into a batch."""
        known = rows[0].columns
        return [n for n in ("origin", "trained", "ended", "temperature", "sampler_logps", "cost", "gold") if n in known]

    def state_dict(self) -> dict[str, Any]:
        """The place among the prompts, the number of draws, what they cost, and the running numbers of feedback."""
        states = {what: state_of(feedback) for what, feedback in self.feedback.items()}
        spent = (self.tokens, self.judged)
        return {"order": self.order.state_dict(), "draws": self.draws, "spent": spent, "feedback": states}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Return to a place.

        Raises:
            PrefoptError: it is a place in other data, or in another order.
        """
        self.order.load_state_dict(state["order"])
        self.draws = state["draws"]
        self.tokens, self.judged = state["spent"]
        for what, saved in state["feedback"].items():
            restore(self.feedback[what], saved)


def _shown(writings: Sequence[Writing]) -> tuple[list[Any], list[list[str]], list[dict[str, Any]]]:
    """What feedback sees: prompts, completions, rows."""
    return (
        [writing.row.example.prompt for writing in writings],
        [writing.texts for writing in writings],
        [{**writing.row.columns, "ended": writing.ended} for writing in writings],
    )
