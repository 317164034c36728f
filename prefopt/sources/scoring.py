"""Asking feedback about what was written: all of it at once, or parts of it in the background while the rest is being written."""

import dataclasses
import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from prefopt.data import Tokenised
from prefopt.environments.episodes import FAILED, MESSAGES, REWARDS
from prefopt.feedback import ask, prefetching, together
from prefopt.feedback.calling import Prefetching, fit, is_unfitted, restore, state_of
from prefopt.sources.writing import prompt_seen, told
from prefopt.support.errors import PrefoptError
from prefopt.support.files import unused
from prefopt.types import Completion, Feedback, Message, Verdict, Written

MISREAD = ("cut", "control", "unknown")
"""What the note of a reward model counts of texts that it did not read as they were written."""


@dataclass
class PromptCompletions:
    """A prompt and what was written on it.

    Attributes:
        row: the prompt.
        written: K completions.
        texts: the same as feedback sees them: as text up to its end, or as the messages of an episode.
    """

    row: Tokenised
    written: list[Written] = field(default_factory=list)
    texts: list[str | tuple[Message, ...]] = field(default_factory=list)


@dataclass(frozen=True)
class Scoring:
    """The feedbacks of a run. Reward models share their work among all processes; any other feedback is asked by the main one.

    Attributes:
        feedback: by what it fills: "scores", and perhaps "cost" and "gold".
        accelerator: knows the processes, which all have the verdicts.
        folder: where the texts go that a feedback failed on; None keeps none.
    """

    feedback: Mapping[str, Feedback]
    accelerator: Accelerator
    folder: Path | None = None

    def verdicts(self, groups: Sequence[PromptCompletions], batch: int) -> dict[str, Verdict]:
        """What each feedback says about these completions.

        Args:
            groups: B prompts with K completions each.
            batch: the number of this batch, which names the file.

        Raises:
            PrefoptError: one failed; the texts are in a file then, which the message names.
        """
        prompts, texts, rows = _shown(groups)
        try:
            return {
                name: _without_failed(ask(feedback, name, prompts, texts, rows, self.accelerator), groups)
                for name, feedback in self.feedback.items()
            }
        except PrefoptError as error:
            raise PrefoptError(f"{str(error).removesuffix('.')}.{self._saved(prompts, texts, batch)}") from error

    @property
    def unfitted(self) -> list[Feedback]:
        """The feedbacks that must measure the reference before they can be asked."""
        return [feedback for feedback in self.feedback.values() if is_unfitted(feedback)]

    def fit(self, groups: Sequence[PromptCompletions]) -> None:
        """Let the unfitted ones measure these completions of the reference.

        Raises:
            PrefoptError: one failed, as for `verdicts`.
        """
        prompts, texts, rows = _shown(groups)
        try:
            for feedback in self.unfitted:
                together(feedback, self.accelerator, partial(fit, feedback, prompts, texts, rows))
        except PrefoptError as error:
            raise PrefoptError(f"{str(error).removesuffix('.')}.{self._saved(prompts, texts, 0)}") from error

    @property
    def prefetching(self) -> list[Prefetching]:
        """Those that can be asked while more is being written: judges on a server, which remember the answers."""
        return [part for feedback in self.feedback.values() for part in prefetching(feedback)]

    def prefetch(self, groups: Sequence[PromptCompletions]) -> None:
        """Begin to ask about these completions, in the background of the main process."""
        if self.accelerator.is_main_process:
            for part in self.prefetching:
                part.prefetch(*_shown(groups))

    def _saved(self, prompts: Sequence[Any], texts: Sequence[Sequence[Completion]], batch: int) -> str:
        """Writes the texts to a file; where it is, in a sentence."""
        if self.folder is None or not self.accelerator.is_main_process:
            return ""
        file = unused(self.folder / f"feedback-failed-batch-{batch}.jsonl")
        file.parent.mkdir(parents=True, exist_ok=True)
        lines = [
            json.dumps({"prompt": prompt, "completions": list(completions)}, ensure_ascii=False)
            for prompt, completions in zip(prompts, texts, strict=True)
        ]
        file.write_text("".join(f"{line}\n" for line in lines))
        return f" The batch is in {file}."

    def state_dict(self) -> dict[str, Any]:
        """The running numbers of each feedback."""
        return {name: state_of(feedback) for name, feedback in self.feedback.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Give the feedbacks their running numbers back."""
        for name, saved in state.items():
            restore(self.feedback[name], saved)


def misread(verdicts: Iterable[Verdict]) -> Counter[str]:
    """How many completions feedback read only a part of (`cut`), how many have words that it has no token for (`unknown`), and how
    many control tokens they spelt out (`control`).

    As the notes of reward models count them, on their own, in ensembles and in panels.
    """
    counts: Counter[str] = Counter()
    notes: list[Any] = [note for verdict in verdicts for note in verdict.notes]
    for note in notes:  # which grows by those of members
        if isinstance(note, Mapping):
            counts.update({name: note[name] for name in MISREAD if type(note.get(name)) is int})
            members = note.get("members")
            notes += members if isinstance(members, list | tuple) else []
    return counts


def _without_failed(verdict: Verdict, groups: Sequence[PromptCompletions]) -> Verdict:
    """The same verdict, and none on completions whose environment failed."""
    failed = torch.tensor([[one.stop == "error" for one in group.written] for group in groups])
    if not failed.any():
        return verdict
    return dataclasses.replace(verdict, scores=verdict.scores.masked_fill(failed.to(verdict.scores.device), math.nan))


def said_of(written: Sequence[Written]) -> dict[str, Any]:
    """Columns for feedback, beside those of the data: how a prompt's completions came to an end, and what an environment gave."""
    return columns_of([{"ended": one.ended, "stop": one.stop, **told(one)} for one in written])


def columns_of(samples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The same of a prompt's samples as evaluations keep them."""
    columns: dict[str, Any] = {"ended": [bool(sample["ended"]) for sample in samples]}
    if any("turn_rewards" in sample for sample in samples):
        columns[REWARDS] = [list(sample.get("turn_rewards", ())) for sample in samples]
        columns[FAILED] = [sample["stop"] == "error" for sample in samples]
        columns[MESSAGES] = [list(sample.get("messages", ())) for sample in samples]
    return columns


def _shown(groups: Sequence[PromptCompletions]) -> tuple[list[Any], list[list[Any]], list[dict[str, Any]]]:
    """What feedback sees: prompts, completions, and the other columns of their rows."""
    return (
        [prompt_seen(group.row.example.prompt, (one.opening for one in group.written)) for group in groups],
        [group.texts for group in groups],
        [{**group.row.columns, **said_of(group.written)} for group in groups],
    )
