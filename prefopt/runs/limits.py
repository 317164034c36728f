"""What is known before a model is loaded is compared. What cannot be is refused by `planning`; what is hardly meant is said here.

Each warning is a sentence with its numbers and what to write instead. `docs/recipes.md` lists all that is compared.
"""

import glob
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from prefopt import recipe
from prefopt.data import Example
from prefopt.data.example import content_key
from prefopt.data.overlaps import overlap
from prefopt.data.rendering import REASONING
from prefopt.environments.episodes import FAILED, REWARDS
from prefopt.objectives.names import fields_of, homes
from prefopt.runs.label.ledger import unfinished
from prefopt.support.errors import nearest
from prefopt.training.devices import launched_processes
from prefopt.types import AXES, Needs

BITS = {"bfloat16": 8, "float16": 11, "float32": 24}
"""Bits of a number's significand: a weight w moves by steps of about |w| · 2^−bits, and smaller ones are rounded away."""

STAMPS = ("given", "notes", "provenance", REWARDS, FAILED)
"""Columns that a labelling adds for people."""

NARROW = 0.01
"""A temperature or `top_p` below this leaves the likeliest token alone almost everywhere."""

TYPICAL = 0.02
"""Standard deviation of weights that most language models start with."""


def settings_warnings(settings: recipe.Recipe, steps: int, trains: bool) -> Iterator[str]:
    """What a recipe's own numbers say of each other.

    Args:
        settings: the recipe.
        steps: logical batches that it trains on.
        trains: whether anything is trained.
    """
    if not trains:
        return
    train = settings.train
    updates = steps * train.passes * train.batch_size // (train.minibatch_size or train.batch_size)
    if train.lr == 0 or not any(term.weight for term in settings.objective):
        what = "train.lr is 0" if train.lr == 0 else "the weight of every objective is 0"
        yield f"{what}: no weight will move"
    else:
        yield from _rounded_away(settings)
    if train.warmup >= 1 and train.warmup > updates:
        yield (
            f"train.warmup is {train.warmup:g} optimiser steps and the run has {updates}: the learning rate only gets to "
            f"{updates / train.warmup:.0%} of train.lr"
        )
    every = {
        "evaluate.every": (settings.evaluate.every, "there is no evaluation in between"),
        "train.checkpoint_every": (
            train.checkpoint_every,
            "there is no checkpoint, and a run that is cut off begins anew",
        ),
        "track.every": (settings.track.every, "no step is logged"),
        "reference.every": (settings.reference.every, "the reference does not move"),
    }
    for key, (number, what) in every.items():
        if number is not None and number > steps:
            yield f"{key} is {number} and the run has {steps} step{'s' * (steps != 1)}: {what}"
    if train.keep_best is not None and settings.evaluate.part == "validation":
        yield (
            "train.keep_best chooses on validation rows, and evaluate.part is validation: the best of several on the rows that it "
            "was chosen by looks better than it is; measure it on test rows (evaluate.part: test)"
        )
    processes, share = launched_processes(), train.minibatch_size or train.batch_size
    if share < processes:
        yield f"an optimiser step has {share} prompts for {processes} processes: {processes - share} of them have nothing to do"
    if train.shard is not None and processes == 1:
        yield (
            "train.shard is given and there is one process, which holds everything whole: start several with `torchrun "
            "--standalone --nproc_per_node N -m prefopt.cli run …`"
        )
    if settings.source.rollouts is not None:
        yield from _nearly_greedy(settings.source.rollouts)
        yield from _uncorrected(settings, settings.source.rollouts.staleness)


def _nearly_greedy(rollouts: recipe.Rollouts) -> Iterator[str]:
    """Sampling that hardly samples."""
    sampling = rollouts.sampling
    if sampling.temperature == 0:
        yield (
            "source.rollouts.sampling.temperature is 0: every prompt has one completion, always the same, and a policy "
            "gradient is of what a policy samples; write temperature: 1"
        )
    for name in ("temperature", "top_p"):
        if 0 < (value := getattr(sampling, name)) < NARROW:
            yield (
                f"source.rollouts.sampling.{name} is {value:g}: all completions of a prompt will be about the same, and there is "
                f"next to nothing to learn from their differences; write {name}: 1"
            )


def _uncorrected(settings: recipe.Recipe, staleness: int) -> Iterator[str]:
    """Completions of an older policy in an objective that could correct for it."""
    for term in settings.objective if staleness else ():
        known = isinstance(term.name, str) and term.name in homes()
        if known and term.source is None and "tis" in fields_of(term.name) and term.fields.get("tis") is None:
            yield (
                f"source.rollouts.staleness is {staleness} and {term.name} takes completions for the policy's own: objective.tis "
                "corrects for their age (tis: 2, or tis: {per: sequence, high: 2})"
            )


UNIT_STEPS = ("adamw", "adamw_8bit", "paged_adamw", "paged_adamw_8bit", "rmsprop")
"""Optimisers whose steps are about as large as the learning rate."""


def _rounded_away(settings: recipe.Recipe) -> Iterator[str]:
    """Weights do not move by a learning rate that is small for their bits: the optimiser's step is about as large as that."""
    policy, train = settings.policy, settings.train
    if policy.dtype not in BITS or policy.adapter is not None or train.optimizer.name not in UNIT_STEPS:
        return
    spacing = 2.0 ** -BITS[policy.dtype]
    largest = train.lr / spacing
    share = math.erf(largest / TYPICAL / math.sqrt(2))
    if share < 0.95:
        finer = (
            "Write policy.dtype: float32, with train.precision: bf16 for speed, or train an adapter (policy.adapter)"
        )
        yield (
            f"policy.dtype is {policy.dtype}, whose numbers are about 2^-{BITS[policy.dtype]} of themselves apart: a step of "
            f"train.lr {train.lr:g} is rounded away from weights above {largest:.2g}, so that about {share:.0%} of weights "
            f"move (of a model whose weights have standard deviation {TYPICAL:g}). "
            f"{'Make train.lr larger' if policy.dtype == 'float32' else finer}"
        )


def data_warnings(
    settings: recipe.Recipe, needs: Needs, held_out: Sequence[Example], train: Sequence[Example]
) -> Iterator[str]:
    """What the rows say of what is asked of them.

    Args:
        settings: the recipe.
        needs: what its data must bring.
        held_out: rows of the part that is evaluated at both ends.
        train: rows as they are trained on.
    """
    part = settings.evaluate.part
    prompts = distinct((row.asks for row in held_out), 2)
    empty = settings.source.split[2 if part == "test" else 1] == 0 and getattr(settings.source, part) is None
    if prompts < 2 and not empty:
        yield (
            f"the {part} part has {'no row' if not held_out else 'one distinct prompt'}: intervals need two, and "
            f"{'nothing is measured' if not held_out else 'there will be none'}. Give more in source.{part} or source.split"
        )
    if needs.signs:
        yield from _one_class(train)
    elif (
        needs.scores and settings.source.rollouts is None and train and all(row.scores == (0.5, -0.5) for row in train)
    ):
        yield (
            "the rows to train on say which completion is better and not by how much: their scores are ½ and −½, and the objective "
            "reads how far apart scores are. Give score_chosen and score_rejected, or take an objective of bare preferences (DPO, "
            "BradleyTerry)"
        )
    ordered = needs.ordered or needs.signs
    if held_out and ordered and settings.source.rollouts is None and all(row.size < 2 for row in held_out):
        yield (
            f"all {len(held_out)} {part} rows have one completion each, so that accuracy and margins, which compare two of a "
            f"prompt, are not measured; give rows with both in source.{part}"
        )


def shared_prompts(part: str, held_out: Sequence[Example], train: Sequence[Example]) -> Iterator[str]:
    """Where prompts that are measured are trained on, too.

    Args:
        part: of the data that is measured.
        held_out: its rows.
        train: the rows to train on.
    """
    same, near, first = overlap(held_out, train)
    what = [f"{same} have a prompt that is trained on"] * bool(same)
    what += [f"{near} have one that differs from such a prompt in case and blanks alone"] * bool(near)
    if what:
        yield (
            f"of {len(held_out)} {part} rows, {' and '.join(what)} (the first is {first}): what is measured there may be "
            "remembered. Leave these rows out of one of the two"
        )


def unread_columns(settings: recipe.Recipe, needs: Needs, train: Sequence[Example]) -> Iterator[str]:
    """Columns of the rows to train on that nothing reads; where feedback is asked, none, for it may read any.

    Args:
        settings: the recipe.
        needs: of all that learns from these rows.
        train: the rows; the first hundred are looked at.
    """
    if _may_read_any(settings):
        return
    rows = train[:100]
    templated = ("tools", "chat_template_kwargs") if any(not isinstance(row.prompt, str) for row in rows) else ()
    # Which of a pair is the better one is said otherwise.
    labelled = ("label",) if all(row.size < 2 for row in rows) else ()
    # Each rater's votes stay beside the preference that they were read as.
    voted = ("votes",) if any(row.preference is not None for row in rows) else ()
    known = {*needs.columns, *settings.evaluate.by, *AXES, *STAMPS, *templated, *labelled, *voted, "split"}
    if columns := sorted({name for row in rows for name in row.columns} - known):
        read = {*needs.columns, "prompt", "chosen", "rejected", "completion", "completions", "scores", "label", "group"}
        guess = next((near for name in columns if (near := nearest(name, read))), "")
        yield (
            f"nothing reads the columns {', '.join(columns)}.{guess} If they belong to the prompt or an answer, put them there by "
            "a function that `source: {adapt: file.py:function}` names"
        )


def unread_keys(settings: recipe.Recipe, template: str, train: Sequence[Example]) -> Iterator[str]:
    """Keys of messages that the chat template does not name, such as `weight`; the same where feedback is asked.

    Args:
        settings: the recipe.
        template: of the policy's tokenizer; empty where it has none.
        train: rows to train on; the first hundred are looked at.
    """
    if _may_read_any(settings):
        return
    sides = [side for row in train[:100] for side in (row.prompt, *row.completions) if not isinstance(side, str)]
    given = {key for side in sides for turn in side for key in turn}
    if keys := sorted(given - {"role", "content", "tool_calls", *REASONING} - set(re.findall(r"\w+", template))):
        yield (
            f"messages have the keys {', '.join(keys)}, which the chat template does not read: they change nothing. A turn that is "
            "not to be learnt belongs to the prompt; a function that `source: {adapt: file.py:function}` names can put it there"
        )


def _may_read_any(settings: recipe.Recipe) -> bool:
    """Whether feedback, a gold reward or a judge is asked, or an environment reset, which see whole rows."""
    evaluate = settings.evaluate
    asked = (settings.source.rollouts, settings.evaluated_in, evaluate.gold, evaluate.judge, *evaluate.metrics.values())
    return any(one is not None for one in asked)


def _one_class(train: Sequence[Example]) -> Iterator[str]:
    good = bad = 0
    for row in train:
        for score in row.scores or ():
            good, bad = good + ((score or 0) > 0), bad + ((score or 0) < 0)
    total, fewer = good + bad, min(good, bad)
    if total and fewer / total < 0.05:
        yield (
            f"{good} completions to train on are desirable and {bad} undesirable: the objective learns from both. Give more "
            "of the other, or weigh them (KTO: lam_d, lam_u)"
        )


def rounded_scores(rows: Iterable[Example]) -> Iterator[str]:
    """Where batches, which hold scores as float32, would lose what sets them apart, for instance of 1.7e9 and 1.7e9 + 1.

    Counted are rows in which rounding moves a score by more than 1% of their range; ranges that float64 itself hardly holds are
    none. Below one row in a hundred these are near ties.

    Args:
        rows: as they are trained on.
    """
    first, count, total = None, 0, 0
    for row in rows:
        total += 1
        if _rounded(scores := [score for score in row.scores or () if score is not None]):
            count += 1
            first = first or f"{row.where}: {', '.join(f'{score:.12g}' for score in scores[:2])}"
    if first is not None and count * 100 >= total:
        yield (
            f"{count} of {total} rows to train on have scores whose differences are lost or changed in batches, which hold about 7 "
            f"decimals (float32); the first is {first}. Take the same number off all of them and scale them to about 1, in "
            "the data or by a function that `source: {adapt: file.py:function}` names"
        )


def _rounded(scores: Sequence[float]) -> bool:
    """Whether float32 moves one of these scores by more than 1% of their range."""
    if len(scores) < 2:
        return False
    exact = np.array(scores, dtype=np.float64)
    apart = exact.max() - exact.min()
    if apart <= 1e-12 * np.abs(exact).max():
        return False
    with np.errstate(over="ignore"):
        return bool((np.abs(exact.astype(np.float32) - exact) > 0.01 * apart).any())


def messages_as_text(rows: Sequence[Example]) -> Iterator[str]:
    """Where a text is the JSON, or Python's way, to write messages: it would be learnt with its brackets."""
    for row in rows[:1]:
        texts = [side for side in (row.prompt, *row.completions) if isinstance(side, str)]
        if any(re.match(r"\s*\[\s*\{.*[\"']role[\"']\s*:", text, re.DOTALL) for text in texts):
            yield (
                f"{row.where}: a text looks like a list of messages written down, and is read as it stands, brackets included. "
                "Make it a list (json.loads) by a function that `source: {adapt: file.py:function}` names"
            )


def unfinished_labellings(settings: recipe.Recipe) -> Iterator[str]:
    """Data of labellings that were interrupted, or are still at work: a part of the prompts, which says nothing of the rest."""
    sources = [settings.source, *(term.source for term in settings.objective if term.source is not None)]
    data = [part for source in sources for part in (source, source.validation, source.test) if part is not None]
    data += settings.evaluate.sets.values()
    files = dict.fromkeys(Path(file) for part in data for name in part.data for file in sorted(glob.glob(name)))
    for file in files:
        if (counts := unfinished(file)) is not None:
            done, total = counts
            yield (
                f"{file} is of a labelling that has not come to its end: it has done {done} of {total} prompts. "
                f"`prefopt label {file.parent}/recipe.yaml --out {file.parent}` goes on with the rest"
            )


def trained_on(train: Sequence[Example], sets: Mapping[str, Sequence[Example]]) -> Iterator[str]:
    """Where a set has prompts that are trained on: what is measured there is memory, too."""
    if not sets:
        return
    seen = {content_key(row.prompt) for row in train}
    for name, rows in sets.items():
        if same := sum(content_key(row.prompt) in seen for row in rows):
            yield f"{same} of {len(rows)} rows of evaluate.sets.{name} have a prompt that is trained on"


def distinct(prompts: Iterable[str], most: int) -> int:
    """How many distinct ones there are, counted up to `most`."""
    seen: set[str] = set()
    for prompt in prompts:
        seen.add(prompt)
        if len(seen) == most:
            break
    return len(seen)
