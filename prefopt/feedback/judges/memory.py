"""Judges' answers on disk: nothing is paid for twice, and no more than the budget is spent."""

import dataclasses
import hashlib
import json
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

from prefopt.feedback.judges.question import Answer, Backend, Question, in_order
from prefopt.support.errors import PrefoptError

SCHEMA = """
CREATE TABLE IF NOT EXISTS answers (key BLOB PRIMARY KEY, judge TEXT NOT NULL, answer TEXT NOT NULL, at TEXT NOT NULL) WITHOUT ROWID
"""


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

    The key is a hash of who answers and of the whole question: model, text (with the rubric in it), labels, sampling, seed. Every
    answer is on disk before it is passed on, so that a crash, a kill or a spent budget loses nothing but the requests under way.
    The file is in WAL mode, which network file systems do not support: put $PREFOPT_CACHE on a local disk.

    Args:
        backend: who is asked what is not remembered.
        folder: of the file; `memory_folder()` unless given.
        budget: none unless given.

    Attributes:
        spent: by this object so far.
    """

    def __init__(self, backend: Backend, folder: Path | None = None, budget: Budget | None = None):
        self.backend = backend
        self.file = (memory_folder() if folder is None else Path(folder)) / "answers.sqlite"
        self.budget = budget or Budget()
        self.spent = Spent()
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
                    if not _is_answer(answer):
                        self._unanswered[keys[i]] = answer
                yield i, answer

        return in_order(noted())

    def ask(self, questions: Sequence[Question]) -> Iterator[tuple[int, Answer]]:
        """What is remembered, at once; then the rest, each as it comes, and each distinct question asked once.

        Raises:
            PrefoptError: the budget is spent, the backend cannot go on, or the file cannot be used; what came before is kept.
        """
        return self._ask(questions, self._prefetched)

    def _ask(self, questions: Sequence[Question], prefetched: Counter[bytes]) -> Iterator[tuple[int, Answer]]:
        identity = self.identity
        places: dict[bytes, list[int]] = {}
        for i, question in enumerate(questions):
            places.setdefault(_key(identity, question), []).append(i)
        judge = " ".join(str(identity[name]) for name in ("kind", "model") if name in identity)
        with closing(self._open()) as disk:
            missing: list[bytes] = []
            for key, same in places.items():
                answer = self._recall(disk, key) or (self._unanswered.pop(key, None) if key in prefetched else None)
                if answer is None:
                    missing.append(key)
                else:
                    yield from ((i, answer) for i in self._hits(len(same) - prefetched.pop(key, 0), same))
            for key, answer in self._bought(missing, [questions[places[key][0]] for key in missing]):
                answer = self._keep(disk, key, judge, answer)
                yield places[key][0], answer
                yield from ((i, answer) for i in self._hits(len(places[key]) - 1, places[key][1:]))

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
                    self._answered += _is_answer(answer)
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

    # The file

    def _open(self) -> sqlite3.Connection:
        """A connection of this call's own, for SQLite's must not change threads; each statement is a transaction."""
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            disk = sqlite3.connect(self.file, timeout=60, isolation_level=None)
            disk.execute("PRAGMA journal_mode = WAL")
            disk.execute("PRAGMA synchronous = NORMAL")
            disk.execute(SCHEMA)
        except (OSError, sqlite3.Error) as error:
            raise self._unusable(error) from error
        return disk

    def _recall(self, disk: sqlite3.Connection, key: bytes) -> Answer | None:
        try:
            row = disk.execute("SELECT answer FROM answers WHERE key = ?", (key,)).fetchone()
        except sqlite3.Error as error:
            raise self._unusable(error) from error
        return None if row is None else _read(row[0])

    def _keep(self, disk: sqlite3.Connection, key: bytes, judge: str, answer: Answer) -> Answer:
        """The answer that is remembered: where another process was first, its, so that all runs see one. No answer is not kept."""
        if not _is_answer(answer):
            return answer
        now = datetime.now(UTC).isoformat(timespec="seconds")
        try:
            disk.execute("INSERT OR IGNORE INTO answers VALUES (?, ?, ?, ?)", (key, judge, _written(answer), now))
        except sqlite3.Error as error:
            raise self._unusable(error) from error
        return self._recall(disk, key) or answer

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


def _is_answer(answer: Answer) -> bool:
    return answer.logps is not None or answer.text is not None


def _written(answer: Answer) -> str:
    """As JSON, which has no infinity: null in its place."""
    fields = dataclasses.asdict(answer)
    if answer.logps is not None:
        fields["logps"] = [None if logp == -math.inf else logp for logp in answer.logps]
    return json.dumps(fields)


def _read(text: str) -> Answer:
    fields = json.loads(text)
    if fields["logps"] is not None:
        fields["logps"] = tuple(-math.inf if logp is None else logp for logp in fields["logps"])
    return Answer(**fields)
