"""Search as an action: a policy looks up what it needs in a collection of texts, and answers."""

import logging
import re
import string
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from prefopt.data.loading import load_rows
from prefopt.recipe.schema.source import DATA_FILES
from prefopt.support.errors import PrefoptError
from prefopt.types import Turn

WRONG = 0.1
"""Reward of a wrong answer in the right format (arXiv 2503.19470)."""

ENDINGS = (".txt", ".md")
"""Files of a folder that are read, each as one text."""


class Index:
    """Texts, and which of them fit a query best by BM25: Lucene's variant with k₁ = 1.5 and b = .75, as bm25s has it.

    All words count, in lower case: those of one letter and the commonest, too.

    Args:
        texts: one or more, with a word in at least one of them.
    """

    def __init__(self, texts: Sequence[str]):
        from bm25s import BM25  # imports numba and JAX, too, where they are installed

        logging.getLogger("bm25s").setLevel(logging.WARNING)  # bm25s 0.3 sets it to DEBUG
        self.texts = tuple(texts)
        words = [_words(text) for text in self.texts]
        if not any(words):
            raise ValueError("there is no word to be found in the texts")
        self._bm25 = BM25()
        self._bm25.index(words, show_progress=False)

    def find(self, query: str, most: int) -> list[str]:
        """The texts that fit a query, best first, and of equally good ones the first in the collection.

        A text without a word of the query does not fit.
        """
        words = _words(query)
        if not words:
            return []
        scores = self._bm25.get_scores(words)
        fitting = np.flatnonzero(scores > 0)
        return [self.texts[number] for number in fitting[np.argsort(-scores[fitting], kind="stable")][:most]]


@dataclass
class Search:
    """Questions that a policy answers with what it finds, as in ReSearch (arXiv 2503.19470).

    It writes in tags, after a prompt that says so: what it thinks in `<think>`, a query in `<search>`, which ends its turn and is
    answered with `<result>texts</result>`, and what it answers in `<answer>`, which ends the episode. Only the part in
    `\\boxed{}` is the answer where there is one. A row has `answer`, a text or a list of texts of which any is right.

    The reward of an episode is F1, that of words which answer and right answer share, if it is above 0; for a wrong answer .1
    in the right format; else 0. The format is right with thoughts, every tag closed, one answer, and no result but those that
    were given. An episode without an answer has 0.

    Logged: `searches`, those that find nothing among them; `exact_match` and `f1` of the answer; and whether the `format` is right.

    Attributes:
        texts: what is searched. A folder, whose .txt and .md files are a text each; a .jsonl, .json, .csv or .parquet file, or a
            function, `module:function` or `file.py:function`, with a text a row; an `Index`. None: nothing, so that no search
            finds anything. It is read once in a process.
        column: of the rows that holds the text.
        top_k: most texts that a search finds.
        characters: of a result, at most; what is longer is cut.

    Raises:
        PrefoptError: no such file, a row without text (names file and line), nothing to search.
    """

    stop: ClassVar[Sequence[str]] = ("</search>", "</answer>")
    logs: ClassVar[Sequence[str]] = ("searches", "exact_match", "f1", "format")

    texts: Any = None
    column: str = "text"
    top_k: int = 5
    characters: int = 4000

    def __post_init__(self) -> None:
        for name in ("top_k", "characters"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        self._index = _read(str(self.texts), self.column) if isinstance(self.texts, str | Path) else self.texts
        if not isinstance(self._index, Index | None):
            raise PrefoptError(
                f"Search: texts names a folder, a file or a function, or is an Index, not {type(self.texts).__name__}; of texts "
                "that are there already, prefopt.environments.search.Index makes one"
            )

    def reset(self, row: Mapping[str, Any], seed: int) -> None:
        """Take up a question; the prompt says all."""
        self._answers = _answers(row)
        self._written = ""

    def step(self, text: str, *, truncated: bool) -> Turn:
        """Search, or end with the answer; a turn that was cut does not search, and is the last."""
        self._written += text
        query = None if truncated else _last("search", text)
        if query is None:
            return self._end(None if truncated else _last("answer", text))
        found = [] if self._index is None else self._index.find(query, self.top_k)
        return Turn(f"<result>{chr(10).join(found)[: self.characters]}</result>", info={"searches": 1.0})

    def _end(self, answer: str | None) -> Turn:
        given = _boxed(answer or "")
        f1 = max(f1_score(given, right) for right in self._answers)
        # Of a right answer such as "A" nothing is left to compare, which no answer must not equal.
        exact = answer is not None and any(normalised(given) == normalised(right) for right in self._answers)
        right_format = answer is not None and has_format(self._written)
        reward = f1 if f1 > 0 else WRONG * right_format
        info = {"searches": 0.0, "exact_match": float(exact), "f1": f1, "format": float(right_format)}
        return Turn(reward=reward, done=True, info=info)


def has_format(written: str) -> bool:
    """Whether all that a policy wrote in an episode has the format of `Search`.

    A `<think>` at the beginning may belong to the prompt, as many chat templates have it.
    """
    if written.partition("</think>")[0].count("<think>") == 0:
        written = "<think>" + written
    pairs = {tag: written.count(f"<{tag}>") for tag in ("think", "search", "answer")}
    closed = all(written.count(f"</{tag}>") == count for tag, count in pairs.items())
    return closed and pairs["think"] > 0 and pairs["answer"] == 1 and "<result>" not in written


def normalised(answer: str) -> str:
    """In lower case, without punctuation, articles and further blanks, as SQuAD and HotpotQA compare answers."""
    plain = "".join(letter for letter in answer.lower() if letter not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", plain).split())


def f1_score(answer: str, right: str) -> float:
    """The harmonic mean of precision and recall of words, as HotpotQA has it: yes and no are right or wrong."""
    given, expected = normalised(answer), normalised(right)
    if given != expected and {given, expected} & {"yes", "no", "noanswer"}:
        return 0.0
    ours, theirs = given.split(), expected.split()
    shared = sum((Counter(ours) & Counter(theirs)).values())
    return 2 * shared / (len(ours) + len(theirs)) if shared else 0.0


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


def _last(tag: str, text: str) -> str | None:
    """What stands in the last pair of these tags; None without one."""
    start, closed, _ = text.rpartition(f"</{tag}>")
    _, opened, inside = start.rpartition(f"<{tag}>")
    return inside.strip() if closed and opened else None


def _boxed(answer: str) -> str:
    boxed = re.search(r"\\boxed\{(.*)\}", answer, re.DOTALL)
    return boxed[1] if boxed else answer


def _answers(row: Mapping[str, Any]) -> list[str]:
    answer = row.get("answer")
    answers = [answer] if isinstance(answer, str) else answer
    if not isinstance(answers, list | tuple) or not answers or not all(isinstance(one, str) for one in answers):
        raise PrefoptError(
            f"Search: a row needs `answer`, a text or a list of texts of which any is right; that of the prompt "
            f"{str(row.get('prompt'))[:60]!r} has {answer!r}"
        )
    return list(answers)


@lru_cache(maxsize=4)
def _read(texts: str, column: str) -> Index:
    """The index of a collection, made once and shared by all episodes of a process."""
    folder = Path(texts).expanduser()
    if not (folder.is_dir() or ":" in texts or folder.suffix in DATA_FILES):
        raise PrefoptError(
            f"Search: texts {texts}: there is no such folder (looked from {Path.cwd()}), and files of rows end in "
            f"{', '.join(DATA_FILES)}"
        )
    try:
        return Index([*(_files(folder) if folder.is_dir() else _rows(texts, column))])
    except ValueError as error:
        raise PrefoptError(f"Search: texts {texts}: {error}") from error


def _files(folder: Path) -> Iterator[str]:
    files = sorted(file for file in folder.rglob("*") if file.suffix in ENDINGS)
    if not files:
        raise PrefoptError(f"Search: the folder {folder} has no {' or '.join(ENDINGS)} files to search")
    for file in files:
        try:
            yield file.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise PrefoptError(f"Search: {file} is not UTF-8 ({error.reason}); save it as UTF-8") from error


def _rows(texts: str, column: str) -> Iterator[str]:
    for where, row in load_rows(texts):
        if not isinstance(row.get(column), str):
            raise PrefoptError(
                f"Search: {where}: no text in column {column!r}; the row has {', '.join(map(repr, row))}. `column` names the one "
                "that is searched"
            )
        yield row[column]
