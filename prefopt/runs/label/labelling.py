"""One labelling: from a recipe to a folder with a data set. Killed at any time, the same command goes on."""

import hashlib
import json
from array import array
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from rich.console import Console

from prefopt.data import DiskRows, Example
from prefopt.data.loading import load
from prefopt.feedback import ask, check_feedback, judge_records, make_feedback, reward_models, spent_by
from prefopt.policy import check_policy, check_sampler, check_stops, find_model
from prefopt.recipe import Samples, most_tokens
from prefopt.runs.label.completions import Completions, DataCompletions, PolicyCompletions, to_label
from prefopt.runs.label.ledger import Ledger
from prefopt.runs.label.recipe import LabelRecipe, refuse_folder
from prefopt.runs.label.rows import written_out
from prefopt.runs.lengths import judge_warnings
from prefopt.runs.manifest import circumstances, date_of, fingerprint_examples
from prefopt.runs.pausing import Asked, Paused
from prefopt.runs.progress import followed, show_labelling, show_notes, show_warnings
from prefopt.runs.written import read_json
from prefopt.support.dates import fixed_date
from prefopt.support.errors import PrefoptError
from prefopt.support.files import locked, write_whole
from prefopt.support.fingerprints import fingerprint_weights
from prefopt.support.logs import silence_telemetry
from prefopt.support.out_of_memory import LABELLING, advising
from prefopt.support.system_errors import noting
from prefopt.support.terminal import Terminal
from prefopt.training.devices import (
    computing,
    entered_on_main_process,
    of_main_process,
    on_main_process,
    refuse_environment,
)

MADE_OF = ("plugins", "completions", "feedback", "data")
"""What of the manifest must be the same when a labelling goes on."""


@dataclass(frozen=True)
class LabelResult:
    """What a labelling came to.

    Attributes:
        folder: data.jsonl, missing.jsonl, calls.jsonl, recipe.yaml, manifest.json.
        counts: prompts and completions with a verdict and without, ties, completions that did not end.
        spent: what the feedback used, by name, in this and in interrupted sessions.
    """

    folder: Path
    counts: Mapping[str, int]
    spent: Mapping[str, float]

    @property
    def data(self) -> Path:
        """The rows, ready as `source.data`."""
        return self.folder / "data.jsonl"

    @property
    def labelled(self) -> bool:
        """Whether any row has verdicts enough to learn from."""
        return self.counts["prompts"] > 0


def label(
    settings: LabelRecipe, folder: str | Path, console: Console | None = None, pause: Asked | None = None
) -> LabelResult:
    """Ask a feedback for its opinion of completions, and write it down as a data set.

    Args:
        settings: what to label, and whose opinion to ask.
        folder: new, or of the same recipe: then it goes on where it was interrupted, or says what it came to.
        console: where a person follows it.
        pause: whether to end; asked after every batch, on the main process. None: never.

    Raises:
        PrefoptError: whatever a user can put right. What was labelled so far is kept.
        Paused: as it was asked.
    """
    silence_telemetry()
    with computing(settings) as accelerator:
        return Labelling(settings, Path(folder), accelerator, console or Terminal(stderr=True)).finish(pause)


def rows_of(settings: LabelRecipe) -> DiskRows[Example]:
    """What it will label; refuses what can be known to be wrong before a model is loaded.

    Raises:
        PrefoptError: a feedback, a model or data that will not do.
    """
    refuse_environment()
    check_feedback(settings.feedback, fixed=True)
    if settings.policy is not None:
        find_model(settings.policy.model)
        check_sampler(settings.samples or Samples(), "samples", settings)
    source = settings.source
    rows, notes = load(list(source.data), source.arguments, split=source.hub_split, adapt=source.adapt)
    show_notes(Terminal(stderr=True), notes)
    chosen = to_label(rows[: source.limit], settings)
    samples, most, shorten = settings.samples or Samples(), None, "the completions of the data"
    if settings.policy is not None:
        most, key = most_tokens(samples.sampling, samples.environment)
        shorten = f"samples.{key}"
    if settings.policy is not None:
        check_policy(settings.policy, scorer=False)  # late, because it reads the tokenizer; so does what follows
        check_stops(settings.samples or Samples(), settings.policy, "samples")
    show_warnings(Terminal(stderr=True), judge_warnings(settings.feedback, "feedback", chosen, most, shorten))
    return chosen


class Labelling:
    """The pieces of a labelling, put together; `finish` does it.

    Everything that can be is checked before a model is loaded. Every process draws and hears the verdicts; the main one writes.

    Args:
        settings: what to label, and whose opinion to ask.
        folder: new, or of the same recipe.
        accelerator: devices, processes and precision.
        console: where a person follows it.
    """

    def __init__(self, settings: LabelRecipe, folder: Path, accelerator: Accelerator, console: Console):
        self.settings, self.folder, self.ledger = settings, folder, Ledger(folder)
        self.accelerator = accelerator
        self.console = of_main_process(accelerator, console)
        refuse_folder(folder, settings)
        self.rows = rows_of(settings)

    def finish(self, pause: Asked | None = None) -> LabelResult:
        """Label what is not labelled yet."""
        if "finished" in _manifest(self.folder):
            return self._result()
        day = on_main_process(self.accelerator, lambda: date_of(_manifest(self.folder)))
        with (
            entered_on_main_process(self.accelerator, self._opened) as done,
            noting(lambda _: self._kept()),
            fixed_date(day),
        ):
            completions = self._completions()
            feedback = make_feedback(self.settings.feedback, self.accelerator)
            begun = self._begin(completions, feedback)
            for finished in self._followed(self._label(done, completions, feedback), len(done)):
                if pause and finished < len(self.rows) and on_main_process(self.accelerator, pause):
                    raise Paused
            result = self._result()
            if self.accelerator.is_main_process:
                ending = {"counts": result.counts, "spent": result.spent, "finished": True}
                write_whole(self.folder / "manifest.json", json.dumps(begun | ending, indent=2))
            self.accelerator.wait_for_everyone()
            return result

    @contextmanager
    def _opened(self) -> Iterator[set[int]]:
        """The folder, for this process alone; the numbers of the rows that are done.

        Raises:
            PrefoptError: another process is labelling here, or a line of the folder's files is damaged.
        """
        with locked(self.folder):
            if not (self.folder / "recipe.yaml").exists():
                write_whole(self.folder / "recipe.yaml", self.settings.to_yaml())
            torn = self.ledger.repair()
            done = self.ledger.done()
            if done:
                cut = f"; {torn} line that was being written is done again" if torn else ""
                self.console.print(f"goes on after {len(done)} of {len(self.rows)} prompts{cut}", highlight=False)
            yield done

    def _kept(self) -> str:
        return f"what was labelled is kept in {self.folder}/; the same command goes on"

    def _completions(self) -> Completions:
        if self.settings.policy is None:
            return DataCompletions(self.rows)
        with self.console.status("loading the policy"):
            return PolicyCompletions(self.rows, self.settings, self.accelerator, _manifest(self.folder))

    def _begin(self, completions: Completions, feedback: Any) -> dict[str, Any]:
        """The manifest; that of the beginning, where there was one.

        Raises:
            PrefoptError: this labelling has other parts than the one that was begun here.
        """
        content: dict[str, Any] = {
            **circumstances(self.settings, self.accelerator),
            "seed": self.settings.seed,
            "completions": dict(completions.source),
            "feedback": {name: fingerprint_weights(model) for name, model in reward_models(feedback).items()},
            "judges": judge_records(feedback),
            "data": {"rows": len(self.rows), "fingerprint": fingerprint_examples(self.rows)},
        }
        begun = _manifest(self.folder)
        self.accelerator.wait_for_everyone()
        if different := [part for part in MADE_OF if begun and begun.get(part) != content[part]]:
            raise PrefoptError(
                f"{self.folder} was begun with other {' and '.join(different)} (manifest.json): rows of two kinds do not go into "
                "one data set; bring back what it was begun with, or name another folder"
            )
        if not begun and self.accelerator.is_main_process:
            write_whole(self.folder / "manifest.json", json.dumps(content, indent=2))
        return begun or content

    def _label(self, done: set[int], completions: Completions, feedback: Any) -> Iterator[int]:
        """Label batch after batch; how many prompts are done after each."""
        finished = len(done)
        stamp = {**completions.source, "feedback": self.settings.feedback.name, "labelling": self._digest()}
        for numbers in self._batches(done):
            with advising(f"labelling into {self.folder}", LABELLING):
                examples = completions(numbers)
                verdict = self._asked([example.seen for example in examples], feedback)
            rows = [example.row for example in examples]
            stamps = [{"row": n, "where": row.where, **stamp} for n, row in zip(numbers, rows, strict=True)]
            if self.accelerator.is_main_process:
                self.ledger.add(written_out(rows, verdict, self.settings.sharpness, stamps))
            finished += len(numbers)
            yield finished

    def _batches(self, done: set[int]) -> Iterator[Sequence[int]]:
        """Numbers of rows that are to be labelled, together those with as many completions."""
        alike: defaultdict[int, array] = defaultdict(lambda: array("Q"))
        for number, row in enumerate(self.rows):
            if number not in done:
                alike[row.size].append(number)
        for _, numbers in sorted(alike.items()):
            for start in range(0, len(numbers), self.settings.batch_size):
                yield numbers[start : start + self.settings.batch_size]

    def _asked(self, examples: Sequence[Any], feedback: Any) -> Any:
        """The verdict; what it cost is on disk whatever comes of it."""
        before = spent_by(feedback)
        try:
            shown = (
                [e.prompt for e in examples],
                [list(e.completions) for e in examples],
                [e.columns for e in examples],
            )
            return ask(feedback, "feedback", *shown, self.accelerator).whole()
        except PrefoptError as error:
            raise PrefoptError(
                f"{error} What was labelled is kept in {self.folder}/; the same command goes on."
            ) from error
        finally:
            spent = {name: value - before.get(name, 0) for name, value in spent_by(feedback).items()}
            if self.accelerator.is_main_process and any(spent.values()):
                self.ledger.spend(len(examples), spent)

    def _followed(self, batches: Iterator[int], done: int) -> Iterator[int]:
        """The same, with progress and running cost shown."""

        def told(finished: int) -> tuple[int, str]:
            return finished, show_labelling(self.ledger.spent())

        return followed(batches, len(self.rows), self.console, "prompt", told, done)

    def _digest(self) -> str:
        """Tells labellings apart in data that are put together later."""
        text = (self.folder / "recipe.yaml").read_text(encoding="utf-8")
        return f"{self.settings.name}-{hashlib.blake2b(text.encode(), digest_size=4).hexdigest()}"

    def _result(self) -> LabelResult:
        return LabelResult(self.folder, self.ledger.counts(), self.ledger.spent())


def _manifest(folder: Path) -> dict[str, Any]:
    """What is there of it.

    Raises:
        PrefoptError: the file is damaged.
    """
    remedy = "restore it, or remove it: the same command then goes on, and compares nothing with what it was begun with"
    return read_json(folder / "manifest.json", remedy)
