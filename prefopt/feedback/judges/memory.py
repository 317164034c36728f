"""Judges' answers on disk: nothing is paid for twice, and no more than the budget is spent."""

import dataclasses
import hashlib
import json
import logging
import math
import os
import sqlite3
import threading
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from prefopt.feedback.judges.models import Models
from prefopt.feedback.judges.question import Answer, Backend, Question, Serving, in_order
from prefopt.feedback.judges.thinking import after_thinking
from prefopt.support.errors import PrefoptError

SCHEMA = (
    "CREATE TABLE IF NOT EXISTS answers (key BLOB PRIMARY KEY, judge TEXT NOT NULL, answer TEXT NOT NULL, at TEXT NOT NULL) "
    "WITHOUT ROWID",
    "CREATE TABLE IF NOT EXISTS models (judge BLOB PRIMARY KEY, model TEXT NOT NULL, at TEXT NOT NULL) WITHOUT ROWID",
)
"""Answers by the hash of who is asked and what; and for each server, what it last said of its model."""

REDRAWN = 20
"""Answers that were drawn anew before all of them being the same says something about who draws them."""


TRIES = 3
"""Questions by which a server is asked whose model it has, where the first are refused for their content."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Budget:
    """What may be spent by one `Memory`, so by one run; what is remembered costs nothing.

    Attributes:
        calls: requests; None sets no limit.
        tokens: read and written; None sets no limit.
    """

    calls: Annotated[int, Field(ge=0)] | None = None
    tokens: Annotated[int, Field(ge=0)] | None = None


@dataclass(frozen=True)
class Prices:
    """In any currency, for a million tokens."""

    prompt: Annotated[float, Field(ge=0)] = 0.0
    completion: Annotated[float, Field(ge=0)] = 0.0


@dataclass(frozen=True)
class Spent:
    """What was bought, and what did not have to be.

    Attributes:
        calls: requests that were answered.
        prompt_tokens: read.
        completion_tokens: written.
        hits: questions that were answered from memory, or that stood twice in one call; not those that were prefetched.
    """

    calls: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    hits: int = 0

    @property
    def tokens(self) -> int:
        """Read and written."""
        return self.prompt_tokens + self.completion_tokens

    def cost(self, prices: Prices) -> float:
        """In the currency of the prices."""
        return (self.prompt_tokens * prices.prompt + self.completion_tokens * prices.completion) / 1e6

    def plus(self, answer: Answer) -> "Spent":
        """With one more answer bought."""
        return dataclasses.replace(
            self,
            calls=self.calls + answer.calls,
            prompt_tokens=self.prompt_tokens + answer.prompt_tokens,
            completion_tokens=self.completion_tokens + answer.completion_tokens,
        )

    def __str__(self) -> str:
        return (
            f"{self.calls} calls, {self.prompt_tokens} tokens read and {self.completion_tokens} written, "
            f"{self.hits} answers from memory"
        )


class Memory:
    """A backend that remembers another one's answers, in one SQLite file for all runs and processes.

    The key is a hash of who answers and of the whole question: model, text (with the rubric in it), labels, sampling, seed; and, of
    a server, what it says of the model behind it (`Models`), so that another model at the same address does not get the old
    answers. Every answer is on disk before it is passed on, so that a crash, a kill or a spent budget loses nothing but the
    requests under way. What is no answer (`is_answer`) is not kept and asked for anew. The file is in WAL mode, which network file
    systems do not support: put $PREFOPT_CACHE on a local disk.

    Args:
        backend: who is asked what is not remembered.
        folder: of the file; `memory_folder()` unless given.
        budget: none unless given.

    Attributes:
        spent: by this object so far.
        redrawn: texts that were written anew at a temperature above 0, and `same`, those of them that were the same again.
    """

    def __init__(self, backend: Backend, folder: Path | None = None, budget: Budget | None = None):
        self.backend = backend
        self.file = (memory_folder() if folder is None else Path(folder)) / "answers.sqlite"
        self.budget = budget or Budget()
        self.spent = Spent()
        self.redrawn: Counter[str] = Counter()
        self.models = Models(backend) if isinstance(backend, Serving) else None
        self._first: dict[bytes, tuple[int, str]] = {}  # seed and text of what was drawn once, for `redrawn`
        self._answered = 0
        self._prefetched: Counter[bytes] = Counter()  # how often each question will be asked once more
        self._unanswered: dict[bytes, Answer] = {}  # those of them that got no answer
        self._lock = threading.Lock()

    @property
    def identity(self) -> Mapping[str, Any]:
        """The backend's, whose answers they are."""
        return self.backend.identity

    def check(self) -> None:
        """Refuse what the backend refuses."""
        self.backend.check()

    def answers(self, questions: Sequence[Question]) -> list[Answer]:
        """The answers, in the order of the questions.

        Raises:
            PrefoptError: as `ask`.
        """
        return in_order(self.ask(questions))

    def prefetch(self, questions: Sequence[Question]) -> list[Answer]:
        """`answers` to what will be asked once more: that is no hit then, and what has no answer is not asked for again."""
        keys = [_key(self.identity, question) for question in questions]

        def noted() -> Iterator[tuple[int, Answer]]:
            for i, answer in self._ask(questions, Counter()):
                with self._lock:
                    self._prefetched[keys[i]] += 1
                    if not is_answer(answer):
                        self._unanswered[keys[i]] = answer
                yield i, answer

        return in_order(noted())

    def ask(self, questions: Sequence[Question]) -> Iterator[tuple[int, Answer]]:
        """What is remembered, at once; then the rest, each as it comes, and each distinct question asked once.

        Raises:
            PrefoptError: the budget is spent, the backend cannot go on, or the file cannot be used; what came before is kept.
        """
        for i, answer in self._ask(questions, self._prefetched):
            self._see_redrawn(questions[i], answer)
            yield i, answer

    def _ask(self, questions: Sequence[Question], prefetched: Counter[bytes]) -> Iterator[tuple[int, Answer]]:
        identity = self.identity
        places: dict[bytes, list[int]] = {}
        for i, question in enumerate(questions):
            places.setdefault(_key(identity, question), []).append(i)
        first = {key: questions[same[0]] for key, same in places.items()}
        with closing(self._open()) as disk:
            bought = dict(self._heard(disk, first)) if self.models is not None and first else {}
            missing: list[bytes] = []
            for key, same in places.items():
                answer = self._recall(disk, key, first[key]) or bought.get(key)
                answer = answer or (self._unanswered.pop(key, None) if key in prefetched else None)
                if answer is None:
                    missing.append(key)
                else:
                    new = key in bought
                    yield from ((i, answer) for i in self._hits(len(same) - new - prefetched.pop(key, 0), same))
            for key, answer in self._bought(missing, [first[key] for key in missing]):
                answer = self._keep(disk, key, first[key], answer)
                yield places[key][0], answer
                yield from ((i, answer) for i in self._hits(len(places[key]) - 1, places[key][1:]))

    def _heard(self, disk: sqlite3.Connection, first: Mapping[bytes, Question]) -> Iterator[tuple[bytes, Answer]]:
        """Find out which model the server has now, where that is not known: by one question, one that is to be asked anyway if
        there is any. Its answer is kept."""
        assert self.models is not None
        with self.models.lock:
            last = self._last_model(disk)
            if not self.models.look(last) or not self._affordable(1):
                return
            likely = [] if last is None else [json.loads(last)[1]]
            unknown = [key for key, question in first.items() if self._recall(disk, key, question, likely) is None]
            for key in [*unknown, *(key for key in first if key not in unknown)][:TRIES]:
                for _, answer in self._bought([key], [first[key]]):
                    self.models.hear(answer.served, last)
                    yield key, self._keep(disk, key, first[key], answer)
                if answer.served:
                    return

    def _bought(self, keys: Sequence[bytes], questions: Sequence[Question]) -> Iterator[tuple[bytes, Answer]]:
        """Answers of the backend within the budget."""
        done = 0
        while done < len(keys):
            count = self._affordable(len(keys) - done)
            if not count:
                raise PrefoptError(self._empty(len(keys) - done))
            for i, answer in self.backend.ask(questions[done : done + count]):
                with self._lock:
                    self.spent = self.spent.plus(answer)
                    self._answered += is_answer(answer)
                yield keys[done + i], answer
            done += count

    def _affordable(self, wanted: int) -> int:
        """How many of the next questions to ask together.

        What they cost is known only afterwards. So under a budget the first is asked alone, and then by the mean so far as many as
        should take half of what is left, down to one at a time: a mean that misleads is corrected before it does harm.

        Raises:
            PrefoptError: the budget is in tokens, and nobody counts them.
        """
        limits = [(self.budget.calls, self.spent.calls), (self.budget.tokens, self.spent.tokens)]
        if self.budget.tokens is not None and self._answered and not self.spent.tokens:
            raise PrefoptError(
                "the judge's budget is in tokens, but it does not say how many it reads and writes: give a budget in calls"
            )
        for limit, spent in limits:
            if limit is not None:
                enough = (limit - spent) * self._answered / spent if spent else float(limit > 0)
                wanted = min(wanted, max(math.ceil(enough / 2), 1) if enough >= 1 else 0)
        return wanted

    def _empty(self, left: int) -> str:
        limits = [f"{limit} {name}" for name, limit in dataclasses.asdict(self.budget).items() if limit is not None]
        return (
            f"the judge's budget of {' and '.join(limits)} is spent: {self.spent}; {left} questions are left. "
            f"What was answered is kept in {self.file}: run the same again to go on from there with as much again, "
            "or raise `budget`"
        )

    def _hits(self, count: int, places: Sequence[int]) -> Sequence[int]:
        with self._lock:
            self.spent = dataclasses.replace(self.spent, hits=self.spent.hits + max(0, count))
        return places

    def _see_redrawn(self, question: Question, answer: Answer) -> None:
        """Count texts that were drawn anew, and those that came out the same again."""
        if not question.temperature or answer.text is None:
            return
        key = _key({}, dataclasses.replace(question, seed=0))
        with self._lock:
            seed, text = self._first.setdefault(key, (question.seed, answer.text))
            if seed != question.seed:
                self.redrawn.update(drawn=1, same=text == answer.text)
                if self.redrawn == Counter(drawn=REDRAWN, same=REDRAWN):
                    log.warning(
                        "%s wrote the same text each time, %d of %d, at temperature %g: it may take no notice of the temperature "
                        "(`transformers serve` does not, unless the model's generation settings sample), and several samples then "
                        "say no more than one",
                        self._name, REDRAWN, REDRAWN, question.temperature,
                    )  # fmt: skip

    @property
    def _name(self) -> str:
        identity = self.identity
        return " ".join(str(identity[name]) for name in ("kind", "model") if name in identity)

    # The file

    def _open(self) -> sqlite3.Connection:
        """A connection of this call's own, for SQLite's must not change threads; each statement is a transaction."""
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            disk = sqlite3.connect(self.file, timeout=60, isolation_level=None)
            disk.execute("PRAGMA journal_mode = WAL")
            disk.execute("PRAGMA synchronous = NORMAL")
            for statement in SCHEMA:
                disk.execute(statement)
        except (OSError, sqlite3.Error) as error:
            raise self._unusable(error) from error
        return disk

    def _recall(
        self, disk: sqlite3.Connection, key: bytes, question: Question, likely: Sequence[str] = ()
    ) -> Answer | None:
        """The answer of a model that the server is known to have now; or of an earlier version of prefopt, which did not ask."""
        for own in [*(self.models.keys(key, likely) if self.models is not None else []), key]:
            try:
                row = disk.execute("SELECT answer FROM answers WHERE key = ?", (own,)).fetchone()
            except sqlite3.Error as error:
                raise self._unusable(error) from error
            if row is not None and (answer := _read(row[0], question)) is not None:
                if self.models is not None and own == key and not likely:
                    self.models.note_unknown(self._name)
                return answer
        return None

    def _keep(self, disk: sqlite3.Connection, key: bytes, question: Question, answer: Answer) -> Answer:
        """The answer that is remembered: where another process was first, its, so that all runs see one. No answer is not kept."""
        if self.models is not None and answer.served:
            self.models.hear(answer.served, self._last_model(disk))
        if not is_answer(answer):
            return answer
        now = datetime.now(UTC).isoformat(timespec="seconds")
        own = self.models.key(key, answer.served) if self.models is not None else key
        try:
            for verb in ("IGNORE", "REPLACE"):  # what was there may be no answer
                statement = f"INSERT OR {verb} INTO answers VALUES (?, ?, ?, ?)"
                disk.execute(statement, (own, self._name, _written(answer), now))
                row = disk.execute("SELECT answer FROM answers WHERE key = ?", (own,)).fetchone()
                if row is not None and (kept := _read(row[0], question)) is not None:
                    return kept
            return answer
        except sqlite3.Error as error:
            raise self._unusable(error) from error
        finally:
            self._note_model(disk, now)

    def _last_model(self, disk: sqlite3.Connection) -> str | None:
        """What the server last said of its model, to any run; None where nobody has asked it."""
        try:
            row = disk.execute("SELECT model FROM models WHERE judge = ?", (self._judge,)).fetchone()
        except sqlite3.Error as error:
            raise self._unusable(error) from error
        return None if row is None else str(row[0])

    def _note_model(self, disk: sqlite3.Connection, now: str) -> None:
        if self.models is not None and self.models.noted != self.models.latest:
            disk.execute("INSERT OR REPLACE INTO models VALUES (?, ?, ?)", (self._judge, self.models.latest, now))
            self.models.noted = self.models.latest

    @property
    def _judge(self) -> bytes:
        return hashlib.sha256(json.dumps(self.identity, sort_keys=True, default=str).encode()).digest()

    def _unusable(self, error: Exception) -> PrefoptError:
        return PrefoptError(
            f"answers of judges cannot be kept in {self.file}: {error}. Free or repair it, move it away if it is damaged, "
            "or set PREFOPT_CACHE to another folder"
        )


def memory_folder() -> Path:
    """`judges` below $PREFOPT_CACHE, or below ~/.cache/prefopt."""
    return Path(os.environ.get("PREFOPT_CACHE") or "~/.cache/prefopt").expanduser() / "judges"


def _key(identity: Mapping[str, Any], question: Question) -> bytes:
    """SHA-256 of who is asked and what; JSON in ASCII, so that half a surrogate pair has a key, too."""
    asked = json.dumps([identity, dataclasses.asdict(question)], sort_keys=True, default=str)
    return hashlib.sha256(asked.encode()).digest()


def is_answer(answer: Answer) -> bool:
    """Whether it answers: likelihoods that are some, or a text that came to its end and says something."""
    if answer.logps is not None:
        return not any(math.isnan(logp) or logp > 0.01 for logp in answer.logps)
    return answer.text is not None and not answer.cut_off and bool((after_thinking(answer.text) or "").strip())


def _written(answer: Answer) -> str:
    """As JSON, which has no infinity: null in its place."""
    fields = dataclasses.asdict(answer)
    if answer.logps is not None:
        fields["logps"] = [None if logp == -math.inf else logp for logp in answer.logps]
    return json.dumps(fields)


def _read(text: str, question: Question) -> Answer | None:
    """What was kept; None where it is no answer after all, as earlier versions kept some, or damaged."""
    try:
        fields = json.loads(text)
        if fields["logps"] is not None:
            fields["logps"] = tuple(-math.inf if logp is None else logp for logp in fields["logps"])
        elif "cut_off" not in fields:  # of an earlier version, which did not ask how a text had ended
            fields["cut_off"] = 0 < question.max_tokens <= fields["completion_tokens"]
        known = {field.name for field in dataclasses.fields(Answer)}
        answer = Answer(**{name: value for name, value in fields.items() if name in known})
        return answer if is_answer(answer) else None
    except (ValueError, KeyError, TypeError, AttributeError):
        return None
